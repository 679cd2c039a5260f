"""What a config cannot ask for is said before anything starts."""

import dataclasses

import pytest

from configs import tiny
from mvg_jax import config as configs
from mvg_jax.errors import RunError
from mvg_jax.experiment import Experiment, build


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return build(configs.from_dict(tiny.get_config().to_dict()))[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"microbatches": 3}, r"config\.grpo\.learner\.microbatches 3 does not divide 16 prompts"),
        ({"microbatches": 0}, r"config\.grpo\.learner\.microbatches 0"),
        ({"view_batches": (128, 383)}, r"config\.grpo\.learner\.view_batches \(128, 383\): a batch may need 384"),
        ({"view_batches": ()}, r"config\.grpo\.learner\.view_batches"),
        ({"suffix_lengths": (80, 127)}, r"config\.grpo\.learner\.suffix_lengths \(80, 127\): a batch may need 128"),
    ],
)
def test_bucket_tables_of_the_update_must_hold_the_worst_case(experiment, fields, message):
    c = experiment.config
    grpo = dataclasses.replace(c.grpo, learner=dataclasses.replace(c.grpo.learner, **fields))
    changed = dataclasses.replace(experiment, config=dataclasses.replace(c, grpo=grpo))
    with pytest.raises(RunError, match=message):
        changed.grpo_stage(None)
    assert experiment.grpo_stage(None).shapes.microbatches == 1
