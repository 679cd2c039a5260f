"""Numbers that others published, each with what it was measured by and on.

Numbers of different settings say nothing about each other: one stands beside ours only where all of `Setting` is equal (`beside`).
Most are not comparable with anything this project computes, and are kept so that this can be seen:

A  MedEvalKit's table. VQA-RAD, SLAKE and PathVQA: open answers judged by a language model, which moves SLAKE by some 50 points
   against exact matching. MMMU: which split is not said (59.2 is no k/150).
B  MedVLThinker's: closed questions only, those of VQA-RAD, SLAKE and PathVQA turned into lettered choices by a language model;
   means of three runs. MMMU: the 170 choice questions of validation and dev.
C  Ophiuchus's table: scorer and subsets not said.
D  HuatuoGPT-Vision's: closed questions and choices, its own scorer.
E  Cards: MedMO's re-run of others beside itself; MedGemma's own token F1 of VQA-RAD and SLAKE.
M  MedVistaGym, the system rebuilt here: neither scorer nor subsets are published. 81.36 and 70.75 are no k/n of any known test set.
"""

from typing import NamedTuple

JUDGED = "medevalkit, open answers judged by a language model"
UNSAID = "not said"
ASKED, CHOICE = "as asked", "lettered choices"


class Setting(NamedTuple):
    """What makes two numbers comparable. protocol: a name of scoring.PROTOCOLS where it is one of them.

    split: as our readers name it. metric: of the protocol. form: "lettered choices" if every question was one, else "as asked".
    items: questions scored; None = not said, and equal to nothing.
    """

    benchmark: str
    protocol: str
    split: str
    languages: str
    form: str
    items: int | None
    metric: str = "accuracy"


class Published(NamedTuple):
    """number: in percent."""

    block: str
    model: str
    setting: Setting
    number: float
    source: str


def beside(setting: Setting) -> tuple[Published, ...]:
    """The published numbers of exactly this setting, best first."""
    if setting.items is None or UNSAID in setting:
        return ()
    return tuple(sorted((row for row in PUBLISHED if row.setting == setting), key=lambda row: (-row.number, row.model)))


def _table(block: str, source: str, settings: tuple[Setting, ...], text: str) -> tuple[Published, ...]:
    """One line a model: its name, then a number for each setting, "-" where there is none."""
    rows = []
    for line in text.strip().splitlines():
        model, *numbers = (cell.strip() for cell in line.split("|"))
        for setting, number in zip(settings, numbers, strict=True):
            if number != "-":
                rows.append(Published(block, model, setting, float(number), source))
    return tuple(rows)


def _unsaid(benchmark: str, protocol: str = UNSAID, metric: str = "accuracy") -> Setting:
    return Setting(benchmark, protocol, UNSAID, UNSAID, UNSAID, None, metric)


_A = (
    _unsaid("mmmu", "medevalkit"),
    Setting("vqa_rad", JUDGED, "test", "en", ASKED, 451),
    Setting("slake", JUDGED, "test_all", "en+zh", ASKED, 2094),
    Setting("path_vqa", JUDGED, "test", "en", ASKED, 6719),
    Setting("pmc_vqa", "medevalkit", "test_2", "en", CHOICE, 33430),
    Setting("omnimedvqa", "medevalkit", "open_access", "en", CHOICE, 88996),
    Setting("medxpertqa", "medevalkit", "test", "en", CHOICE, 2000),
)
_B = (
    Setting("pmc_vqa", "medvlthinker", "test_clean", "en", CHOICE, 2000),
    Setting("mmmu", "medvlthinker", "val_dev_choice", "en", CHOICE, 170),
    Setting("medxpertqa", "medvlthinker", "test", "en", CHOICE, 2000),
    Setting("path_vqa", "medvlthinker", "test", "en", CHOICE, 3362),
    Setting("slake", "medvlthinker", "test", "en", CHOICE, 416),
    Setting("vqa_rad", "medvlthinker", "test", "en", CHOICE, 272),
)
_C = tuple(map(_unsaid, ("path_vqa", "slake", "vqa_rad", "omnimedvqa", "mmmu", "medxpertqa")))
_HUATUO = "huatuogpt-vision"
_D = (
    Setting("vqa_rad", _HUATUO, "test", "en", UNSAID, None),
    Setting("slake", _HUATUO, "test", "en", UNSAID, None),
    Setting("path_vqa", _HUATUO, "test", "en", UNSAID, None),
    Setting("pmc_vqa", _HUATUO, "test_clean", "en", CHOICE, 2000),
    Setting("omnimedvqa", _HUATUO, UNSAID, "en", CHOICE, 11124),
    Setting("mmmu", _HUATUO, "test", "en", UNSAID, 1752),
)
_CARD = tuple(map(_unsaid, ("mmmu", "vqa_rad", "slake", "path_vqa", "pmc_vqa", "omnimedvqa", "medxpertqa")))
_GEMMA = (
    _unsaid("vqa_rad", metric="token F1"),
    _unsaid("slake", metric="token F1"),
    _unsaid("medxpertqa"),
)
_GYM = tuple(map(_unsaid, ("slake", "vqa_rad", "path_vqa", "pmc_vqa", "mmmu")))

PUBLISHED: tuple[Published, ...] = (
    *_table("A", "MedEvalKit, Hulu-Med and Fleming-VL READMEs", _A, """
        GPT-5               | 83.6 | 67.8 | 78.1 | 52.8 | 60.0 | 76.4 | 71.0
        GPT-4.1             | 75.2 | 65.0 | 72.2 | 55.5 | 55.2 | 75.5 | 45.2
        GPT-4o              | 62.8 | 61.0 | 71.2 | 55.5 | 49.7 | 67.5 | 44.3
        InternVL3-8B        | 59.2 | 65.4 | 72.8 | 48.6 | 53.8 | 79.1 | 22.4
        Qwen2.5-VL-7B       | 50.6 | 64.5 | 67.2 | 44.1 | 51.9 | 63.6 | 22.3
        Qwen3-VL-8B-thinking | -   | 64.3 | 71.8 | 47.8 | 54.3 | 77.1 | -
        Lingshu-7B          | 54.0 | 67.9 | 83.1 | 61.9 | 56.3 | 82.9 | 26.7
        MedGemma-4B-it      | 43.7 | 72.5 | 76.4 | 48.8 | 49.9 | 69.8 | 22.3
        HuatuoGPT-Vision-7B | 47.3 | 67.0 | 67.8 | 48.0 | 53.3 | 74.2 | 21.6
        LLaVA-Med-7B        | 29.3 | 53.7 | 48.0 | 38.8 | 30.5 | 44.3 | 20.3
        MedVLM-R1-2B        | 35.2 | 48.6 | 56.0 | 32.5 | 47.6 | 77.7 | 20.4
        Fleming-VL-8B       | -    | 66.1 | 86.5 | 62.9 | 64.3 | 89.1 | -
        Hulu-Med-7B         | 51.4 | 78.0 | 86.8 | 65.6 | 66.8 | 84.2 | 29.0
    """),
    *_table("B", "MedVLThinker and MedVLSynther READMEs", _B, """
        GPT-4o              | 58.55 | 68.82 | 35.95 | 72.43 | 76.44 | 70.22
        GPT-4o-mini         | 51.90 | 63.53 | 28.55 | 63.33 | 75.24 | 66.91
        Qwen2.5-VL-7B       | 49.30 | 52.94 | 18.89 | 65.39 | 65.71 | 68.75
        MedGemma-4B         | 42.73 | 32.55 |  8.17 | 59.64 | 83.49 | 78.55
        LLaVA-Med-v1.5      | 34.28 | 31.37 | 22.56 | 56.52 | 62.82 | 56.74
        HuatuoGPT-Vision-7B | 53.39 | 50.59 | 22.00 | 63.53 | 75.00 | 63.60
        MedVLThinker-7B     | 50.67 | 56.86 | 24.43 | 66.83 | 65.79 | 64.71
        MedVLThinker-32B    | 54.37 | 70.00 | 34.60 | 68.82 | 73.96 | 76.96
        MedVLSynther-7B     | 55.43 | 55.88 | 22.10 | 65.56 | 72.36 | 77.57
    """),
    *_table("C", "Ophiuchus README", _C, """
        Ophiuchus-7B        | 74.3 | 83.9 | 73.6 | 78.6 | 76.0 | 39.3
        GPT-5               | 60.0 | 73.2 | 64.5 | 75.4 | 70.7 | 40.4
        o3 (tools)          | 67.5 | 75.3 | 66.0 | 73.7 | 74.5 | 44.1
        InternVL3-8B        | 53.2 | 70.4 | 65.6 | 72.2 | 62.3 | 23.8
        Qwen2.5-VL-7B       | 50.4 | 66.5 | 63.4 | 64.7 | 56.7 | 23.5
        DeepEyes-7B         | 52.9 | 68.2 | 65.9 | 64.8 | 57.8 | 23.6
        Mini-o3             | 53.4 | 67.8 | 65.7 | 65.1 | 57.4 | 24.3
        PixelReasoner       | 52.6 | 67.3 | 66.0 | 64.9 | 58.0 | 23.5
        LLaVA-Med           | 44.6 | 47.7 | 52.5 | 52.1 | 38.8 | 19.9
        MedVLM-R1           | 38.3 | 54.3 | 45.2 | 68.3 | 45.9 | 21.7
        Lingshu-7B          | 68.4 | 77.8 | 66.4 | 74.9 | 57.8 | 25.2
        Chiron-o1-8B        | 68.8 | 77.4 | 72.5 | 76.2 | 55.4 | 24.3
        MMedAgent           | 59.4 | 68.7 | 64.0 | 58.2 | 44.1 | 22.3
        MedAgent-Pro        | 58.5 | 69.4 | 63.3 | 59.5 | 52.9 | 27.8
        MMedAgent-RL-7B     | 58.5 | 67.9 | 66.1 | 60.3 | 58.9 | 22.6
        VILA-M3-40B         | 66.4 | 71.4 | 65.7 | 55.1 | 56.6 | 23.0
    """),
    *_table("D", "HuatuoGPT-Vision README", _D, """
        HuatuoGPT-Vision-7B | 63.7 | 76.2 | 57.9 | 54.3 | 74.0 | 50.6
        LLaVA-Med-7B        | 51.4 | 48.6 | 56.8 | 24.7 | 44.5 | 36.9
    """),
    *_table("E", "MedMO model card", _CARD, """
        MediX-R1-8B         | 63.3 | 51.6 | 54.4 | 41.0 | 55.3 | 73.8 | 24.9
        MedMO-8B            | 64.6 | 64.7 | 70.0 | 56.3 | 59.4 | 84.8 | 26.2
    """),
    *_table("E", "MedGemma, self-reported", _GEMMA, "MedGemma-4B-it | 49.9 | 62.3 | 18.8"),
    *_table("M", "MedVistaGym, arXiv 2601.07107", _GYM, "MedVistaGym-R1-8B | 81.36 | 70.75 | 69.00 | 58.00 | 56.43"),
)  # fmt: skip
