r"""Chat templates: how a question, its image and the answer become one text.

Each follows its family's published layout and marks the answer with `{% generation %}`, which most templates on the hub leave
out. All write the same text before the answer whether or not it follows, so that the answer can be located by its prompt.
"""

_TEXT = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
HELPFUL = "You are a helpful assistant."

VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ '\n' }}ASSISTANT:"
    "{% else %}{% generation %}"
    "{% for part in message['content'] if part['type'] == 'text' %} {{ part['text'] }}{% endfor %}</s>"
    "{% endgeneration %}{% endif %}{% endfor %}"
)
"""LLaVA-1.5's own layout, with an end token and generation marks, which the template on the hub lacks."""


def _images(placeholder: str) -> str:
    return "{% for part in message['content'] if part['type'] == 'image' %}{{ " + repr(placeholder) + " }}{% endfor %}"


def chatml(placeholder: str, *, system: str = "") -> str:
    """The layout of Qwen-VL, LLaVA-OneVision and InternVL.

    Args:
        placeholder: what stands for an image.
        system: what is written before everything, if anything.
    """
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return (
        "{{ " + repr(first) + " }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}" + _TEXT + "{{ '<|im_end|>' }}{% endgeneration %}"
        "{% else %}" + _images(placeholder) + _TEXT + "{{ '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}" + _TEXT + "{{ '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}" + _images("<|image|>") + _TEXT + "{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Llama-3.2-Vision. Deviation from the hub's template: no system message with a date before questions without an image."""

IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['role'] == 'assistant' %}{% generation %} " + _TEXT + "{{ '<end_of_utterance>' }}{% endgeneration %}"
    "{% else %}" + _images("<image>") + "{% if message['content'][0]['type'] != 'image' %} {% endif %}" + _TEXT + ""
    "{{ '<end_of_utterance>' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""SmolVLM and Idefics3."""

GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\n' }}"
    "{% if role == 'model' %}{% generation %}" + _TEXT + "{{ '<end_of_turn>' }}{% endgeneration %}"
    "{% else %}" + _images("<start_of_image>") + _TEXT + "{{ '<end_of_turn>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma 3."""
