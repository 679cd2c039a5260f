import pytest

from mvg_jax.data.label_names import Name, parse_name, read_names
from mvg_jax.errors import RunError


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Precentral_L", Name("Precentral", "left")),
        ("Frontal_Sup_Orb_R", Name("Frontal Sup Orb", "right")),
        ("Left-Lateral-Ventricle", Name("Lateral-Ventricle", "left")),
        ("kidney_right", Name("kidney", "right")),
        ("left kidney", Name("kidney", "left")),
        ("rib_left_1", Name("rib 1", "left")),
        ("Vermis_4_5", Name("Vermis 4 5")),
        ("L", Name("L")),
        ("liver", Name("liver")),
        ("L1", Name("L1")),
    ],
)
def test_sides_are_read_out_of_names(written, expected):
    assert parse_name(written) == expected


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("names.txt", "# AAL\n1 Insula_L 3001\n2 left kidney\n\n0 background\n"),
        ("names.txt", "1 Insula_L 205 0 0 0\n2 kidney_L 0 1 2 0\n"),
        ("itk.label", '0 0 0 0 0 0 0 "Clear"\n1 255 0 0 1 1 1 "Insula_L"\n2 0 1 0 1 1 1 "left kidney"\n'),
        ("names.csv", "id,name\n1,Insula_L\n2,left kidney\n"),
        ("names.csv", "Insula_L,1\nleft kidney,2\n"),
        ("names.tsv", "index\tname\tcolour\n1\tInsula_L\t#ff0000\n2\tleft kidney\t#00ff00\n"),
        ("names.json", '{"1": "Insula_L", "2": "left kidney"}'),
        ("dataset.json", '{"name": "x", "labels": {"background": 0, "Insula_L": 1, "left kidney": 2}}'),
    ],
)
def test_tables_of_all_kinds_say_the_same(where, text):
    assert read_names(text.encode(), where) == ((1, Name("Insula", "left")), (2, Name("kidney", "left")))


@pytest.mark.parametrize(
    ("where", "text", "reason"),
    [
        ("names.txt", b"liver 1\n", "line 1"),
        ("names.txt", b"1 liver\n1 spleen\n", "label 1 is named twice"),
        ("names.txt", b"1\n", "no name"),
        ("names.txt", b"", "names no label"),
        ("names.txt", b"\xff\xfe1", "UTF-8"),
        ("names.json", b"[1]", "an object"),
        ("names.json", b"{", "not JSON"),
        ("names.json", b'{"liver": true}', "no label and its name"),
        ("names.csv", b"id,name\nliver,\n", "no label and name"),
    ],
)
def test_a_bad_table_is_named(where, text, reason):
    with pytest.raises(RunError, match=reason) as error:
        read_names(text, where)
    assert where in str(error.value)
