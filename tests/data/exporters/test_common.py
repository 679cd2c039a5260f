import io

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data.exporters.common import answer_text, encode_image
from mvg_jax.data.task import AnswerType, Task


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("JPEG", "RGB"), ("PNG", "LA")]
)
def test_an_image_is_encoded_in_the_mode_asked_for(format, mode):
    pixels = np.full((8, 8), 100, np.uint8)
    image = Image.open(io.BytesIO(encode_image(pixels, format, mode)))
    assert (image.format, image.mode, image.size) == (format, mode, (8, 8))
    np.testing.assert_allclose(np.asarray(image.convert("L")), pixels, atol=3)


def test_the_mode_follows_the_pixels_unless_said():
    assert Image.open(io.BytesIO(encode_image(np.zeros((8, 8), np.uint8), "PNG"))).mode == "L"
    assert Image.open(io.BytesIO(encode_image(np.zeros((8, 8, 3), np.uint8), "JPEG"))).mode == "RGB"


@pytest.mark.parametrize(("answer_type", "answer"), [(AnswerType.CHOICE, "B"), (AnswerType.CLOSED, "Spleen")])
def test_a_letter_is_written_out(answer_type, answer):
    options = ("Liver", "Spleen", "B")
    task = Task("a", "b", "organ", (), "Which organ?", answer, options, answer_type=answer_type)
    assert answer_text(task) == "Spleen"
