import pytest

from mvg_jax.report.predictions import Called, Prediction, scored


@pytest.fixture
def made():
    """A maker of predictions: the defaults are a right answer of a closed VQA-RAD question."""

    def make(answer: str | None = "Left", protocols=("strict",), **fields) -> Prediction:
        values = {
            "benchmark": "vqa_rad", "split": "test", "tools": "on", "prompt": "full", "id": "rad/0", "sample": 0,
            "dataset": "vqa_rad", "kind": "POS", "answer_type": "closed", "modality": "CT", "language": "en",
            "question": "Which side?", "gold": "Left", "options": (), "accepted": (), "tolerance": 0.0, "images": 1,
            "needs_tool": None, "chance": 0.0, "response": f"<think></think><answer>{answer}</answer>", "answer": answer,
            "stop": "ANSWER",
            "turns": 1, "malformed": 0, "tokens": 7, "views": 0, "calls": (), "tool_choice": None, "box_hit": None,
        }  # fmt: skip
        calls = tuple(Called(*call) for call in fields.pop("calls", ()))
        return scored(Prediction(**(values | {"calls": calls} | fields)), protocols)

    return make
