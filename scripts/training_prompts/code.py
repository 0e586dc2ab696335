"""Prompts about code: functions of the standard library, their sources, and small programs."""

import importlib
import inspect
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

MODULES = (
    "bisect calendar cmath collections colorsys configparser contextlib copy csv datetime decimal "
    "difflib fnmatch fractions functools glob hashlib heapq html http inspect ipaddress itertools "
    "json keyword locale logging math mimetypes operator os.path pathlib platform posixpath pprint "
    "quopri random re secrets shlex shutil statistics string struct tempfile textwrap time "
    "timeit tokenize traceback types unicodedata urllib.parse uuid warnings zipfile zlib"
).split()
TASKS = (
    "sorts a list of words by length|counts the vowels in a text|finds the second largest number|"
    "merges two dictionaries by adding values|removes duplicates but keeps the order|"
    "checks whether brackets are balanced|computes the average of each column of a table|"
    "splits a list into chunks of n items|converts Celsius to Fahrenheit|finds all prime factors|"
    "computes a moving average|rotates a matrix by 90 degrees|parses a line of CSV|"
    "capitalises every sentence|finds the longest common prefix of a list of words|"
    "groups words by their first letter|counts how often each word occurs|validates a date|"
    "flattens a nested list|transposes a list of lists|finds the median|generates a password|"
    "reads a file and numbers its lines|finds the shortest word|"
    "computes the greatest common divisor|"
    "turns a number into Roman numerals|compresses a text by run lengths|multiplies two matrices|"
    "searches a sorted list by bisection|computes compound interest|formats a duration in seconds|"
    "checks whether a word is a palindrome|converts a binary number to decimal|"
    "finds pairs of numbers with a given sum|prints a multiplication table|"
    "calculates the factorial of a number|swaps the keys and values of a dictionary|"
    "finds the difference between two dates in days|encrypts a text with a Caesar cipher|"
    "removes punctuation from a text|simulates rolling two dice|draws a triangle of stars|"
    "finds the words that two texts share|counts the lines of all files in a folder|"
    "checks the strength of a password|computes the distance between two points|"
    "merges two sorted lists|implements a stack with push and pop|"
    "finds the most frequent character|converts a list of strings to integers|"
    "calculates the mean and the standard deviation|reverses the words of a sentence|"
    "validates an e-mail address with a regular expression"
).split("|")
LANGUAGES = ("Python", "Python", "Python", "JavaScript", "Java", "C", "C++", "Go", "Rust", "SQL")
ABOUT_TASK = (
    "Write a {language} function that {task}.|"
    "Write a {language} program that {task}, with comments that explain each step.|"
    "I need code in {language} that {task}. Also show how to call it.|"
    "Describe in words, step by step, how a program that {task} works.|"
    "Write a {language} class whose method {task}, and an example of its use."
).split("|")
ABOUT_FUNCTION = (
    'Complete this Python function:\n\ndef {short}{signature}:\n    """{doc}"""\n|'
    "Explain what `{name}` does in Python and show an example.|"
    "Write a Python function `{short}` that does the following: {doc}|"
    "Write a unit test for a function `{short}{signature}` with this docstring: {doc}|"
    "When would you use `{name}`, and what are common mistakes?"
).split("|")
ABOUT_SOURCE = (
    "Explain what this code does, line by line",
    "Write a docstring for this function",
    "Find possible mistakes in this code and correct them",
    "Rewrite this function with clearer names",
    "Translate this function to JavaScript",
    "Add type hints and comments to this function",
    "Write three tests for this function",
)
SHORTEST, LONGEST = 120, 900  # characters of a source


@dataclass(frozen=True)
class Function:
    """A public function of the standard library."""

    name: str
    signature: str
    doc: str  # the first paragraph
    source: str


def draws(corpus: Path | None) -> Callable[[random.Random], str]:
    """Return what draws a prompt."""
    functions = list(library_functions())
    shown = [f.source for f in functions if SHORTEST < len(f.source) < LONGEST]

    def draw(rng: random.Random) -> str:
        kind = rng.randrange(3)
        if kind == 0:
            return rng.choice(ABOUT_TASK).format(
                language=rng.choice(LANGUAGES), task=rng.choice(TASKS)
            )
        if kind == 1:
            return f"{rng.choice(ABOUT_SOURCE)}:\n\n```python\n{rng.choice(shown)}```"
        one = rng.choice(functions)
        short = one.name.rsplit(".", 1)[1]
        return rng.choice(ABOUT_FUNCTION).format(short=short, **vars(one))

    return draw


def library_functions() -> Iterator[Function]:
    """Yield the functions with a docstring, in the same order every time."""
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in sorted(vars(module).items()):
            lines = (inspect.getdoc(value) or "").split("\n\n")[0]
            if attribute.startswith("_") or not isinstance(value, FunctionType) or not lines:
                continue
            yield Function(f"{name}.{attribute}", _signature(value), lines[:300], _source(value))


def _signature(function: FunctionType) -> str:
    """Return the parameters; defaults without the addresses that differ from run to run."""
    text = re.sub(
        r"<(?:built-in )?(?:function|method) (\w+)[^<>]*>", r"\1", str(inspect.signature(function))
    )
    return re.sub(r" at 0x\w+", "", text)


def _source(function: FunctionType) -> str:
    """Return the text of a function; nothing if it is made at run time, or wraps compiled code."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
