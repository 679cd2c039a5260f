"""Counts what XLA compiles, so that a run can show that nothing does after warm-up."""

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCount:
    """Programs compiled (or read from the persistent cache) in this process since this object was made."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event == _EVENT:
            self.count += 1
            self.seconds += seconds
