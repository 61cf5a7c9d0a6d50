#!/usr/bin/env python3
"""Makes cases.json: templates of our own and what jinja2 makes of them, in the environment that
transformers uses for chat templates (sandboxed, trim_blocks, lstrip_blocks, loopcontrols, generation,
tojson without HTML escapes, raise_exception, strftime_now with a fixed clock).

    python -m venv v && v/bin/pip install jinja2==3.1.6 && v/bin/python make_cases.py

`generated` comes from the grammar below with a fixed seed: expressions with filters, tests and methods,
format strings, and statements with scopes and whitespace control. null stands for an error.
"""

import copy
import datetime
import json
import os
import random

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2025, 7, 10, 12, 0, 0)


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(lineno)

    def _text(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception
ENV.globals["strftime_now"] = NOW.strftime


def render(template, context):
    """The text, or None for an error, or False where Python's answer is its own (addresses, integers
    beyond 64 bits, complex numbers)."""
    try:
        text = ENV.from_string(template).render(**copy.deepcopy(context))
    except Exception:
        return None
    own = " at 0x" in text.lower() or "j)" in text or "bound method" in text.lower() or "built-in" in text.lower()
    digits = max((len(w) for w in __import__("re").findall(r"\d+", text)), default=0)
    return False if own or digits > 17 else text


# ---- the grammar ----
R = random.Random(20250710)
CTX = {
    "s": "Hello, World",
    "u": "häß ñ 日本語 🎉 x",
    "e": "",
    "sp": "  two  words \n",
    "n": 7,
    "z": 0,
    "neg": -3,
    "f": 2.5,
    "g": 1e20,
    "h": 0.1,
    "t": True,
    "fa": False,
    "no": None,
    "l": [3, 1, 2],
    "ls": ["b", "A", "c", "a"],
    "le": [],
    "ll": [[1, 2], [3, 4]],
    "d": {"a": 1, "b": "two", "c": [1, 2], "items": 5},
    "de": {},
    "lt": "a,b,,c",
    "q": 'it\'s "q" <b>&',
    "ms": [
        {"role": "user", "content": "hi", "n": 2},
        {"role": "assistant", "content": None, "n": 1},
        {"role": "user", "content": "yo", "x": {"y": [1, 2]}, "n": 3},
    ],
    "nl": "l1\nl2\r\nl3\n\nl5",
}
names = list(CTX) + ["undef"]


def atom(d):
    r = R.random()
    if r < 0.45:
        return R.choice(names)
    if r < 0.55:
        return str(R.choice([0, 1, 2, 3, 5, 10, -1, -2, 100, 255]))
    if r < 0.60:
        return R.choice(
            ["1.5", "0.5", "2.0", "1e3", "100.0", "3.14159", "1e-7", "123456789.123", "1e16", "12345678901234567"]
        )
    if r < 0.75:
        return R.choice(
            [
                "'a'",
                "'l'",
                '"x"',
                "''",
                "','",
                "' '",
                "'Hello'",
                "'日'",
                "'a\\nb'",
                "'%s'",
                "'{}'",
                "(q|safe)",
                "('<%s>'|safe)",
                "('<{}>'|safe)",
                "(s|e)",
                "'content'",
                "'role'",
                "'A b-c d'",
                "'\\t'",
            ]
        )
    if r < 0.82:
        return R.choice(["true", "false", "none", "True"])
    if r < 0.88:
        return "[" + ", ".join(expr(d - 1) for _ in range(R.randint(0, 3))) + "]"
    if r < 0.92:
        return "(" + ", ".join(expr(d - 1) for _ in range(R.randint(2, 3))) + ")"
    if r < 0.96:
        return (
            "{"
            + ", ".join(R.choice(["'a'", "'k'", "1", "n", "true"]) + ": " + expr(d - 1) for _ in range(R.randint(0, 2)))
            + "}"
        )
    return "range(%s)" % ", ".join(str(R.randint(-3, 6)) for _ in range(R.randint(1, 3)))


FILT = [
    "upper",
    "lower",
    "title",
    "capitalize",
    "trim",
    "trim('l')",
    "length",
    "count",
    "first",
    "last",
    "list",
    "reverse",
    "join",
    "join(',')",
    "join('-')",
    "sort",
    "sort(reverse=true)",
    "sort(attribute='n')",
    "sort(case_sensitive=true)",
    "unique",
    "unique|list",
    "min",
    "max",
    "sum",
    "abs",
    "int",
    "int(5)",
    "float",
    "round",
    "round(1)",
    "round(1,'floor')",
    "round(0,'ceil')",
    "round(-1)",
    "default('D')",
    "d('D',true)",
    "default",
    "tojson",
    "tojson(indent=2)",
    "tojson(indent=1,sort_keys=true)",
    "tojson(ensure_ascii=true)",
    "tojson(separators=(',',':'))",
    "items",
    "items|list",
    "dictsort",
    "dictsort(by='value')",
    "dictsort(reverse=true)|list",
    "map('upper')|list",
    "map(attribute='role')|list",
    "map(attribute='n')|sum",
    "map(attribute='zz',default='?')|join",
    "map('default','x')|list",
    "select|list",
    "reject|list",
    "select('odd')|list",
    "select('string')|list",
    "reject('none')|list",
    "selectattr('role','equalto','user')|list",
    "selectattr('x')|list",
    "selectattr('content','none')|list",
    "rejectattr('x','defined')|list",
    "selectattr('n','gt',1)|map(attribute='n')|list",
    "batch(2)|list",
    "batch(2,'-')|list",
    "slice(2)|list",
    "slice(3,'x')|list",
    "groupby('role')|list",
    "groupby('n')",
    "replace('l','L')",
    "replace('l','',1)",
    "replace('','-')",
    "indent",
    "indent(2,true)",
    "indent(width='>>',blank=true)",
    "truncate(5)",
    "truncate(5,true)",
    "truncate(8,false,'..',0)",
    "center(20)",
    "wordcount",
    "escape",
    "e",
    "safe",
    "safe",
    "e",
    "safe|upper",
    "forceescape",
    "e|list",
    "urlencode",
    "format('x')",
    "format(1,2)",
    "attr('upper')",
    "attr('a')",
    "filesizeformat",
    "filesizeformat(true)",
    "list|length",
    "map(attribute='x.y.0')|list",
    "select('in',[1,2])|list",
    "map('int')|list",
    "map('tojson')|join(';')",
    "sum(start=10)",
    "sum(attribute='n')",
]
TESTS = [
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "integer",
    "float",
    "boolean",
    "true",
    "false",
    "mapping",
    "sequence",
    "iterable",
    "callable",
    "odd",
    "even",
    "divisibleby 2",
    "divisibleby(3)",
    "lower",
    "upper",
    "eq 1",
    "ne('a')",
    "lt 3",
    "gt 2",
    "ge 1",
    "in [1,2,'a']",
    "in s",
    "sameas none",
    "sameas true",
    "equalto 'a'",
    "escaped",
    "eq n",
    "filter",
    "test",
]
METH = [
    "upper()",
    "lower()",
    "strip()",
    "strip('l')",
    "lstrip()",
    "rstrip('d')",
    "split()",
    "split(',')",
    "split('l',1)",
    "rsplit('l',1)",
    "rsplit()",
    "splitlines()",
    "splitlines(true)",
    "startswith('H')",
    "startswith(('H','h'))",
    "endswith('d')",
    "endswith('d',0,3)",
    "replace('l','1')",
    "replace('l','1',1)",
    "find('l')",
    "rfind('l')",
    "find('l',3)",
    "index('o')",
    "count('l')",
    "count('')",
    "title()",
    "capitalize()",
    "swapcase()",
    "casefold()",
    "isdigit()",
    "isalpha()",
    "isalnum()",
    "isupper()",
    "islower()",
    "isspace()",
    "istitle()",
    "isnumeric()",
    "isdecimal()",
    "isidentifier()",
    "isprintable()",
    "isascii()",
    "zfill(5)",
    "center(9,'*')",
    "ljust(6)",
    "rjust(15,'.')",
    "partition(',')",
    "rpartition('l')",
    "join(['a','b'])",
    "join(ls)",
    "format(1,2)",
    "format('x',a=3)",
    "removeprefix('He')",
    "removesuffix('ld')",
    "expandtabs()",
    "expandtabs(4)",
    "items()",
    "keys()",
    "values()",
    "items()|list",
    "keys()|list",
    "get('a')",
    "get('zz')",
    "get('zz','dd')",
    "get('a','b')",
    "copy()",
    "index(1)",
    "count(1)",
    "append(1)",
    "pop()",
    "update({})",
    "clear()",
    "bit_length()",
    "is_integer()",
    "upper",
]
OPS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">", "<=", ">=", "and", "or", "in", "not in"]


def expr(d):
    if d <= 0:
        return atom(0)
    r = R.random()
    if r < 0.18:
        return atom(d)
    if r < 0.38:
        op = R.choice(OPS)
        if op == "**":
            return f"({expr(d-1)} ** {R.choice(['2','3','0','-1','0.5','n'])})"
        return R.choice(["{} {} {}", "({} {} {})"]).format(expr(d - 1), op, expr(d - 1))
    if r < 0.55:
        return f"{R.choice([atom(d),'('+expr(d-1)+')'])}|{R.choice(FILT)}"
    if r < 0.63:
        return f"{atom(d)} is {R.choice(['','not '])}{R.choice(TESTS)}"
    if r < 0.77:
        return f"{R.choice([atom(d),'('+expr(d-1)+')'])}.{R.choice(METH)}"
    if r < 0.82:
        return f"{R.choice(names)}[{expr(d-1)}]"
    if r < 0.88:
        b = lambda: R.choice(["", "", "1", "2", "-1", "-2", "0", "5", "n", "none"])
        return f"{R.choice(names)}[{b()}:{b()}{R.choice(['',':'+R.choice(['','1','-1','2','-2','3'])])}]"
    if r < 0.92:
        return f"{expr(d-1)} if {expr(d-1)}" + R.choice(["", " else " + expr(d - 1)])
    if r < 0.95:
        return R.choice(["-", "+", "not "]) + expr(d - 1)
    if r < 0.97:
        return f"{R.choice(names)}.{R.choice(['a','b','items','role','foo','0','1','x.y'])}"
    return f"({expr(d-1)} < {expr(d-1)} <= {expr(d-1)})"


FMT = [
    "%s",
    "%d",
    "%5d",
    "%-5d|",
    "%05d",
    "%+d",
    "%x",
    "%X",
    "%#x",
    "%o",
    "%5.2f",
    "%.3f",
    "%e",
    "%g",
    "%G",
    "%r",
    "%c",
    "%10s|",
    "%-10s|",
    "%.2s",
    "%%",
    "%(a)s",
    "%(b)r",
    "%i",
    "%a",
    "% d",
    "%.0f",
    "%#o",
    "%5.1e",
]
SF = [
    "{}",
    "{0}",
    "{a}",
    "{:5}",
    "{:<5}|",
    "{:>5}",
    "{:^7}|",
    "{:*^9}",
    "{:05d}",
    "{:+d}",
    "{:.2f}",
    "{:,}",
    "{:_}",
    "{:x}",
    "{:#x}",
    "{:b}",
    "{!r}",
    "{!s:>8}",
    "{:e}",
    "{:g}",
    "{:%}",
    "{0[0]}",
    "{0.a}",
    "{{}}",
    "{:.3}",
    "{:10.3f}|",
    "{:d}",
    "{:s}",
    "{:n}",
    "{:.1%}",
    "{:=+8d}",
    "{:X}",
]


def fmtcase():
    if R.random() < 0.5:
        f = "".join(R.choice(FMT) + R.choice(["", " "]) for _ in range(R.randint(1, 2)))
        a = R.choice([atom(1), "(%s, %s)" % (atom(1), atom(1)), "(%s,)" % atom(1), "d"])
        return "{{ %r %% %s }}" % (f, a)
    f = "".join(R.choice(SF) for _ in range(R.randint(1, 2)))
    return "{{ %r.format(%s, %s, a=%s) }}" % (f, atom(1), atom(1), atom(1))


ws = lambda: R.choice(["", "-", "-", "+", ""])


def ws2():
    return R.choice(["", "-", "-", ""])


def txt():
    return R.choice([" ", "\n", "\n  ", "  \n", "x", " y ", "\n\n", "\t", "a\nb", "  z", "\r\n", "", "", " \n \n "])


VARS = ["a", "b", "s", "n", "l", "d", "v1", "loop"]


def body(d):
    return "".join(stmt(d) + txt() for _ in range(R.randint(1, 3)))


def st(x):
    return "{%" + ws() + " " + x + " " + R.choice(["-", "", " ", "", "+"]) + "%}"


def ev(x):
    return "{{" + ws2() + " " + x + " " + ws2() + "}}"


def sv():
    return R.choice(["a", "b", "v1", "s", "n"])


LD = [0]
MD = [0]


def se():
    while True:
        e = se0()
        if "loop" in e and not LD[0] and R.random() < 0.95:
            continue
        if ("m(" in e or "caller()" in e or "varargs" in e or "kwargs" in e) and R.random() < 0.9:
            continue
        if "ns." in e and not NS[0]:
            continue
        if ("+ 1" in e or "|length" in e) and R.random() < 0.8:
            continue
        return e


NS = [True]


def se0():
    return R.choice(
        [
            "a",
            "b",
            "v1",
            "s",
            "n",
            "l",
            "undef",
            "loop.index",
            "loop.last",
            "loop.first",
            "x",
            "loop.index0",
            "loop.length",
            "loop.revindex",
            "loop.previtem",
            "loop.nextitem",
            "loop.cycle('p','q')",
            "loop.changed(x)",
            "loop.depth",
            "ns.v",
            "m(1)",
            "m()",
            "caller()",
            "varargs",
            "kwargs",
            "y",
            "l|length",
            "x ~ a",
            "a + 1",
            "ns.v + 1",
            "loop",
        ]
    )


INM = [0]


def stmt(d):
    r = R.random()
    if d <= 0 or r < 0.25:
        return txt() + ev(se()) + txt()
    if r < 0.38:
        return st("set %s = %s" % (sv(), R.choice([se(), "1", "'q'", "[1,2]", "x"])))
    if r < 0.42:
        return st("set ns.v = %s" % R.choice(["1", "1", "ns.v ~ 'z'", "a"]))
    if r < 0.46:
        return st("set %s%s" % (sv(), R.choice(["", "|upper", "|trim|length"]))) + body(d - 1) + st("endset")
    if r < 0.60:
        LD[0] += 1
        try:
            return (
                st(
                    "for x in %s%s%s"
                    % (
                        R.choice(
                            [
                                "l",
                                "ls",
                                "range(3)",
                                "ll",
                                "d",
                                "ms|map(attribute='role')",
                                "le",
                                "s",
                                "d.items()",
                                "undef",
                            ]
                        ),
                        R.choice([""] * 4 + [" if x", " if x != 2", " if loop"]),
                        "",
                    )
                )
                + body(d - 1)
                + R.choice(
                    [
                        "",
                        st("break"),
                        st("if loop.index > 1") + st("continue") + st("endif"),
                        st("if x == 1") + st("break") + st("endif"),
                    ]
                )
                + R.choice(["", st("else") + body(d - 1)])
                + st("endfor")
            )
        finally:
            LD[0] -= 1
    if r < 0.64:
        return (
            st("for x, y in %s" % R.choice(["d.items()", "ll", "d|dictsort", "[('a',1),('b',2)]"]))
            + body(d - 1)
            + st("endfor")
        )
    if r < 0.76:
        return (
            st("if " + R.choice([se(), "x", "a", "true", "false", "n > 3", "l", "loop.first", "not a"]))
            + body(d - 1)
            + R.choice(["", st("elif " + R.choice(["a", "x", "true"])) + body(d - 1)])
            + R.choice(["", st("else") + body(d - 1)])
            + st("endif")
        )
    if r < 0.82:
        return (
            st("macro %s" % R.choice(["m(p)", "m(p=1)", "m(p, q=2)", "m()", "m(a=3,b=a)"]))
            + body(d - 1)
            + R.choice(["", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller }}", "{{ p }}{{ q }}"])
            + st("endmacro")
        )
    if r < 0.86:
        return (
            st("call%s m(%s)" % (R.choice(["", "(x)", ""]), R.choice(["", "1", "1,2", "p=3", "4,z=5"])))
            + body(d - 1)
            + st("endcall")
        )
    if r < 0.89:
        return st("with %s" % R.choice(["a=1", "a=b", "a=1, b=a", ""])) + body(d - 1) + st("endwith")
    if r < 0.92:
        return st("filter %s" % R.choice(["upper", "trim", "replace('a','b')|title"])) + body(d - 1) + st("endfilter")
    if r < 0.94:
        return (
            "{%"
            + ws()
            + " raw "
            + R.choice(["-", ""])
            + "%}"
            + txt()
            + "{{ raw }}"
            + txt()
            + "{%"
            + ws()
            + " endraw "
            + R.choice(["-", "", "+"])
            + "%}"
        )
    if r < 0.97:
        return "{#" + ws() + " c " + R.choice(["-", "", "+"]) + "#}"
    return st("generation") + body(d - 1) + st("endgeneration")


def scopecase():
    pre = R.choice(
        [
            "{% set ns = namespace(v=0) %}",
            "{% set ns = namespace(v=0) %}{% macro m(p) %}[{{ p }}{{ a }}{{ caller() if caller else '' }}]{% endmacro %}",
        ]
    )
    return pre + body(3)


# ---- templates written by hand ----
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The <weather> & "more" — für °C',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer", "default": 3},
                    "scale": {"type": "number", "default": 1.0},
                },
                "required": ["city"],
            },
        },
    }
]
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Wetter in Zürich? ☀"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "abc",
                "type": "function",
                "function": {
                    "name": "weather",
                    "arguments": {"city": "Zürich", "days": 2, "x": None, "y": [1, 2.5, True]},
                },
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abc", "content": '{"t": 21}'},
    {"role": "assistant", "content": "<think>\nsunny\n</think>\n\n21 °C"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "there?"}],
    },
]
PLAIN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}, {"role": "user", "content": " c\n"}]
W = [
    (
        "marked turns",
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        {"messages": PLAIN, "add_generation_prompt": True},
    ),
    (
        "alternation is checked",
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}{{ bos_token + '[Q] ' + m.content.strip() + ' [/Q]' }}{% else %}{{ ' ' ~ m.content | trim ~ eos_token }}{% endif %}{% endfor %}",
        {"messages": PLAIN, "bos_token": "<s>", "eos_token": "</s>"},
    ),
    (
        "alternation is broken",
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
        {"messages": CHAT},
    ),
    (
        "tools, calls, thoughts",
        """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- macro text(content) -%}
    {%- if content is string -%}{{ content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}{{ part.text if part.type == 'text' else '<img>' }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' %}
[SYS]{{ messages[0].content | trim }}
{%- if tools %}

{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
{%- endif %}[/SYS]
{%- set messages = messages[1:] %}
{%- endif %}

{% for m in messages %}
{%- set content = text(m.content) %}
{%- if '</think>' in content and loop.index0 < ns.last %}
    {%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
[{{ m.role | upper }}]{{ content }}
{%- if m.tool_calls %}
    {%- for call in m.tool_calls %}
        {%- set call = call.function if call.function is defined else call %}
        {{- '\n<call>' ~ call.name ~ '(' }}
        {%- for k, v in call.arguments | items %}{{ k }}={{ v | tojson if v is not string else v }}{{ ', ' if not loop.last }}{% endfor %}
        {{- ')</call>' }}
    {%- endfor %}
{%- endif %}
{% endfor %}
{%- if add_generation_prompt %}[ASSISTANT]{% endif %}
""",
        {"messages": CHAT, "tools": TOOLS, "add_generation_prompt": True},
    ),
    (
        "json in all its forms",
        "{{ tools|tojson }}\n{{ tools|tojson(indent=2) }}\n{{ tools|tojson(separators=(',',':'),sort_keys=true) }}\n{{ tools|tojson(true) }}\n{{ [1.0, 1e20, 1e-7, 0.1, 123456789012345680.0, true, none, 'a\\u2028\\x7f\\x01']|tojson }}{{ {}|tojson(indent=1) }}{{ [[]]|tojson(indent=1) }}",
        {"tools": TOOLS},
    ),
    (
        "the clock",
        "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }} {{ strftime_now('%A %B %j %%') }}",
        {},
    ),
    (
        "a default for what is not there",
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools is none }}{{ tools | default('x') }}{{ nothing | default('y') }}{{ '' | default('z', true) }}{{ nothing }}{{ m.content if m is defined else 'no m' }}",
        {},
    ),
    (
        "scopes of loops and ifs",
        "{% set a = 1 %}{% for x in [1, 2] %}{{ a }}{% set a = x * 10 %}{{ a }}{% endfor %}{{ a }}{% if true %}{% set b = 5 %}{% endif %}{{ b }}{% for x in [1] %}{{ c }}{% endfor %}{% set c = 9 %}{{ c }}",
        {"b": 1, "c": 7},
    ),
    (
        "recursion",
        "{% for x in tree recursive %}{{ loop.depth }}{{ x.n }}{% if x.kids %}({{ loop(x.kids) }}){% endif %}{{ ',' if not loop.last }}{% endfor %}",
        {"tree": [{"n": "a", "kids": [{"n": "b", "kids": [{"n": "c"}]}, {"n": "d"}]}, {"n": "e"}]},
    ),
    (
        "loop variables",
        "{% for x in 'abcd' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('p','q') }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(x == 'a') }}|{% endfor %}",
        {},
    ),
    (
        "filter and else of a loop",
        "{% for x in range(10) if x is odd %}{{ x }}{{ '' if loop.last else ',' }}{% else %}none{% endfor %}{% for x in [] %}x{% else %} empty{% endfor %}{% for x in [1,2,3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% else %}never{% endfor %}",
        {},
    ),
    (
        "macros with everything",
        "{% macro m(a, b=a, c='z') %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{{ caller('C') if caller }}{% endmacro %}{{ m(1) }}|{{ m(1, 2, 3, 4, k=5) }}|{% call(x) m('q') %}<{{ x }}>{% endcall %}|{{ m.name }}{{ m.arguments }}",
        {},
    ),
    (
        "blocks that capture",
        "{% set t | upper | trim %} abc {{ 1 + 1 }} {% endset %}[{{ t }}]{% filter replace('a', 'b') | title %}banana man{% endfilter %}{% with x = 1, y = 2 %}{{ x + y }}{% endwith %}{% generation %}said{% endgeneration %}",
        {},
    ),
    (
        "white space, every sign",
        "a\n  {%- if true -%}  \n b \n {%- endif %}\n  {%+ if true %}\n  c\n  {% endif +%}\n d {{- 1 -}} \n e {#- x -#} f\n  {# y #}\n g{% raw %}\n {{ h }}\n {%- endraw -%}\n i\n\n",
        {},
    ),
    ("carriage returns", "a\r\nb\rc\n{{ 'x\r\ny' }}\r\n", {}),
    (
        "text as Python has it",
        "{{ 'straße'.upper() }}{{ 'ΑΣ ΑΣΑ'.lower() }}{{ 'ŉ ǆ ﬁ'.title() }}{{ 'İ'.lower()|length }}{{ 'ﬁ'.casefold() }}{{ '²½٣x'.isdigit() }}{{ '٣²'.isdigit() }}{{ '日本語'[::-1] }}{{ 'é🎉x'[1] }}{{ 'é🎉x'|length }}{{ '\u00a0x\u3000'.strip() }}{{ \"it's\"|list }}{{ ['\u200b','\t\x1f','é']}}",
        {},
    ),
    (
        "numbers as Python has them",
        "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ 1e16 }} {{ 1e15 }} {{ 0.00001 }} {{ 5.0 // 2 }} {{ -5.5 % 2 }} {{ 1 == 1.0 }} {{ true + 1 }} {{ 0x1F }} {{ 1_000 }} {{ 2.5|round }} {{ 3.5|round|int }} {{ 2.675|round(2) }} {{ '12.7'|int }} {{ ' 42 '|int }} {{ '0x1f'|int(0, 16) }} {{ 'x'|int(-1) }} {{ '1e3'|float }}",
        {},
    ),
    (
        "formats",
        "{{ '%s|%5d|%-5s|%05.1f|%x|%r|%%' % ('a', 42, 'b', 2.25, 255, 'q') }}{{ '{} {1}'|length }}{{ '{:>6}|{:^7}|{:,}|{:.2%}|{!r:>5}'.format('a', 'b', 1234567, 0.125, 'x') }}{{ '{a[k]} {0.x}'.format({'x': 1}, a={'k': 2}) }}{{ '%(a)s' % {'a': 1} }}",
        {},
    ),
    ("what the sandbox keeps out", "{{ ''.__class__ }}[{{ [].append }}]{{ [1].append(2) }}", {}),
    (
        "marked safe",
        "{{ '<a>'|safe + '<b>' }}{{ '<a>' ~ '<b>'|safe }}{{ '<i>'|e }}{{ ('%s'|safe) % '<' }}{{ ['<x>'|safe] }}{{ ('a<'|e).upper() + '>' }}",
        {},
    ),
]


def main():
    written = [{"name": n, "template": t, "context": c, "expected": render(t, c)} for n, t, c in W]
    generated = []
    while len(generated) < 1500:
        k = R.random()
        t = "{{ %s }}" % expr(R.randint(1, 3)) if k < 0.5 else fmtcase() if k < 0.62 else scopecase()
        text = render(t, CTX)
        if text is False or len(t) > 700 or "|string" in t:
            continue
        if text is None and R.random() < 0.75:
            continue
        generated.append([t, text])
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases.json")
    with open(path, "w", encoding="utf-8") as f:
        f.write('{"made_by": "jinja2 %s",\n"written": [\n' % jinja2.__version__)
        f.write(",\n".join(json.dumps(w, ensure_ascii=False) for w in written))
        f.write('],\n"context": ' + json.dumps(CTX, ensure_ascii=False) + ',\n"generated": [\n')
        f.write(",\n".join(json.dumps(g, ensure_ascii=False) for g in generated) + "]}\n")


if __name__ == "__main__":
    main()
