"""The text the tiny world speaks: what the tiny tokenizer is built from."""

import json

NATIVE_KINDS = ("attribute", "count", "compare", "window", "organ", "side", "structure")

SLOTS = (
    "homogeneous rim-enhancing calcified septated lytic sclerotic left right liver kidney spleen lung "
    "bone vertebra pancreas none soft_tissue brain horizontal vertical one two three yes no"
).split()

QUESTIONS = (
    "What is the internal structure of the lesion in the liver?",
    "What is the structure of the lesion?",
    "How many specks are in the lesion?",
    "How many specks does the lesion in the liver hold?",
    "Which lesion is septated, left or right?",
    "Which of the two lesions is calcified?",
    "Is the lesion in the vertebra lytic or sclerotic?",
    "Is the bone lesion lytic or sclerotic?",
    "Which organ holds the lesion?",
    "On which side is the lesion?",
    "Which large structure is shown?",
)
OPTIONS = ("homogeneous, rim-enhancing, calcified, septated", "1, 2, 3", "left, right", "lytic, sclerotic", "liver, spleen")
THINKS = (
    "The lesion is too small to see here. I zoom in.",
    "The lesion is too small. Zoom in.",
    "Compare both lesions.",
    "The bone is clipped. Use the bone window.",
    "It is visible.",
    "Now it is visible.",
    "The lesion is visible now.",
)
SYSTEM = (
    "Think, then call one tool or answer.",
    "Think first, then call a tool if needed, or answer.",
)
TOOLS = (
    "image_zoom_in_tool(bbox_2d, img_idx)",
    "image_flip_tool(axis, img_idx)",
    "image_rotate_tool(angle, img_idx)",
    "window_level_tool(preset, img_idx)",
    "window_level_tool(preset | center, width, img_idx)",
)
OBSERVATIONS = (
    "Zoomed view.",
    "Zoomed views.",
    "Flipped view.",
    "Rotated view.",
    "New window.",
    "Error E1: think, then one tool call or one answer.",
    "Error E1: the tool call is not valid JSON.",
    "Error E1: the turn is too long.",
    "Error E2: unknown tool.",
    "Error E3: wrong arguments.",
    "Error E4: illegal value.",
)
CALLS = (
    ("image_zoom_in_tool", {"bbox_2d": [120, 440, 280, 600], "img_idx": 0}),
    ("image_zoom_in_tool", {"bbox_2d": [120, 440, 280, 600], "label": "lesion", "img_idx": 0}),
    ("image_zoom_in_tool", {"bbox_2d": [[120, 440, 280, 600], [520, 140, 680, 300]], "img_idx": 0}),
    ("image_flip_tool", {"axis": "horizontal", "img_idx": 0}),
    ("image_rotate_tool", {"angle": 90, "img_idx": 0}),
    ("window_level_tool", {"preset": "bone", "img_idx": 0}),
    ("window_level_tool", {"center": 400, "width": 1800, "img_idx": 0}),
)
IMAGE = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"



def _prompt(system, tools, question, options):
    lines = "".join(line + "\n" for line in tools)
    return (
        f"<|im_start|>system\n{system}\n<tools>\n{lines}</tools><|im_end|>\n<|im_start|>user\n{IMAGE}\n{question}\n"
        f"Options: {options}<|im_end|>\n<|im_start|>assistant\n"
    )


def _call(name, arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def template_texts():
    texts = [_prompt(system, TOOLS, question, options) for system in SYSTEM for question in QUESTIONS for options in OPTIONS]
    texts += [f"<think>{think}</think>" for think in THINKS] + [_call(*call) for call in CALLS]
    texts += [f"\n<|im_start|>user\n<tool_response>{IMAGE}{text}</tool_response><|im_end|>\n<|im_start|>assistant\n" for text in OBSERVATIONS]
    return texts


def slot_words():
    return list(SLOTS)


def samples():
    yield "prompt", _prompt(SYSTEM[0], TOOLS[:4], QUESTIONS[0], OPTIONS[0])
    yield "zoom turn", f"<think>{THINKS[0]}</think>{_call(*CALLS[0])}<|im_end|>"
    yield "two zooms", f"<think>{THINKS[2]}</think>{_call(*CALLS[2])}<|im_end|>"
    yield "window turn", f"<think>{THINKS[3]}</think>{_call(*CALLS[5])}<|im_end|>"
    yield "answer turn", f"<think>{THINKS[4]}</think><answer>rim-enhancing</answer><|im_end|>"
    yield "observation", f"\n<|im_start|>user\n<tool_response>{IMAGE}Zoomed view.</tool_response><|im_end|>\n<|im_start|>assistant\n"
