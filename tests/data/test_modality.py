import pytest

from mvg_jax.data.modality import MODALITIES, spelt, wordings


@pytest.mark.parametrize("name", MODALITIES)
def test_every_name_and_wording_is_spelt_one_way(name):
    assert spelt(name) == name
    assert spelt(name.upper()) == name
    assert {spelt(wording) for wording in wordings(name)} <= {name}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MR", "MRI"),
        ("CR", "X-Ray"),
        ("x-ray", "X-Ray"),
        ("CT(Computed Tomography)", "CT"),
        ("MR (Mag-netic Resonance Imaging)", "MRI"),
        ("OCT (Optical Coherence Tomography", "OCT"),
        ("  Radio   Waves ", "Radio Waves"),
        ("", ""),
        ("(CT)", "CT"),
    ],
)
def test_spellings(text, name):
    assert spelt(text) == name


def test_wordings_hold_no_codes():
    assert wordings("X-Ray") == ("x ray", "xray", "radiograph", "radiography")
    assert "mr" in wordings("MRI")
