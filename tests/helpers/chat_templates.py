"""Chat templates of the tests: each has what some real templates have."""

from typing import Any

PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
ALTERNATING = """{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate, found ' ~ m.role) }}
    {%- endif %}
    {{- '[' + m.role + '] ' + m.content + eos_token }}
{%- endfor %}
"""
TOOLS = """{%- set ns = namespace(count=0, last='') %}
{% if tools %}
    Tools:
    {% for tool in tools %}
    {{ tool | tojson(indent=2) }}
    {% endfor %}
{% endif %}
{%- for m in messages %}
    {%- set ns.count = ns.count + 1 %}
    {%- if m.tool_calls %}
        {%- for call in m.tool_calls %}
<tool_call>{{ {'name': call.function.name, 'a': call.function.arguments} | tojson }}</tool_call>
        {%- endfor %}
    {%- elif m.content is defined %}
{{ ns.count }}. {{ m.role }}: {{ m.content }}
    {%- endif %}
{%- endfor %}
{{ dict.fromkeys(['a']) }} {{ dict(b=1) }}
"""
GENERATION = """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}
  {{ m.content }}
{% endgeneration %}
{% else %}
{% if loop.index > 4 %}{% break %}{% endif %}
<{{ m.role }}> {{ m.content }}
{% endif %}{% endfor %}
"""
THINKING = """{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
PARTS = """{% for m in messages %}{{ m.role }}:
{%- for part in m.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}
{% endfor %}"""
EITHER = """{% for m in messages %}{{ m.role }}:
{%- if m.content is string %}[{{ m.content }}]{% else %}
{%- for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}
{% endfor %}"""
DOCUMENTS = """{% if documents %}{% for d in documents %}{{ d.title }}
{% endfor %}{% endif %}{{ messages[-1].content }} {{ style or 'plain' }} {{ messages | length }}"""

TEMPLATES = {
    "plain": PLAIN, "alternating": ALTERNATING, "tools": TOOLS, "generation": GENERATION,
    "thinking": THINKING, "parts": PARTS, "either": EITHER, "documents": DOCUMENTS,
}  # fmt: skip

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": " Hi  there\n 東京? "},
    {"role": "assistant", "content": "Hello, <b>&'\"."},
    {"role": "user", "content": "2 < 3"},
]
SYSTEM = {"role": "system", "content": "Be brief. 🦊"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "now <&> 'é'", "parameters": {"a": [1, None]}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "東京"}}}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "turns": {"messages": TURNS},
    "system": {"messages": [SYSTEM, *TURNS]},
    "no prompt": {"messages": TURNS, "add_generation_prompt": False},
    "tools": {"messages": TURNS[:1], "tools": [TOOL]},
    "calls": {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
    "thought": {"messages": [TURNS[0], {"role": "assistant", "content": "<think>a</think>\n\nb"}]},
    "arguments": {"messages": TURNS, "chat_template_kwargs": {"enable_thinking": False,
                                                              "style": "x", "eos_token": "!"}},
    "documents": {"messages": TURNS, "documents": [{"title": "A", "text": "b"}]},
}  # fmt: skip


def by_transformers(tokenizer: Any, template: str, case: dict[str, Any], **more: Any) -> Any:
    """Return what `apply_chat_template` makes of a conversation."""
    values = {"add_generation_prompt": True, "tokenize": False, **case, **more}
    arguments = values.pop("chat_template_kwargs", {})
    messages = values.pop("messages")
    return tokenizer.apply_chat_template(messages, chat_template=template, **values, **arguments)
