"""What came of a model on tasks: predictions as files, their statistics, and tables for people to read."""
