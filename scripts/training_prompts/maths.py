"""Arithmetic, algebra, geometry and probability, plain and in words."""

import random
from collections.abc import Callable
from pathlib import Path

NAMES = "Anna|Ben|Carla|David|Elif|Farid|Grace|Hugo|Ines|Jonas|Kofi|Lena|Mei|Noah|Olga|Pedro".split(
    "|"
)
THINGS = "apples|pencils|tickets|books|stamps|eggs|chairs|bottles|cards|shirts|plants|coins".split(
    "|"
)
# a: 3 to 99, b: 2 to 40, c: 2 to 12, d: 2 to 9; `p` has two digits and a zero.
PROBLEMS = (
    "What is {a} + {b} * {c}? Show each step.",
    "A shop sells {a} {things} a day at {c} dollars each. How much does it earn in {b} days?",
    "Solve for x: {c}x + {b} = {a}. Explain your steps.",
    "A train travels {ac} km in {c} hours. How far does it go in {b} hours?",
    "List the multiples of {c} between {b} and {bb}.",
    "What is {b} percent of {p}? Explain how you found it.",
    "{name} has {a} {things} and gives {c} to each of {d} friends. How many are left?",
    "{name} buys {b} {things} for {c} dollars each and pays with {p} dollars. What is the change?",
    "A rectangle is {a} cm long and {b} cm wide. Find its area and its perimeter.",
    "The sides of a right triangle are {a} and {b}. How long is the hypotenuse?",
    "A circle has a radius of {b} cm. What are its circumference and its area?",
    "What are the next three numbers of the sequence {b}, {bc}, {bcc}? Explain the rule.",
    "Simplify the fraction {ad}/{bd}.",
    "Add the fractions {d}/{c} and {c}/{b}. Show your work.",
    "A bag holds {b} red and {c} blue balls. What is the probability of drawing a blue one?",
    "{name} reads {b} pages a day. How many days does a book of {p} pages take?",
    "The numbers are {a}, {b}, {c}, {d} and {p}. Find the mean, the median and the range.",
    "Solve the system x + y = {a} and x - y = {b}.",
    "Expand (x + {c})(x - {d}).",
    "Find the derivative of {c}x^{d} + {b}x - {a}.",
    "{name} invests {p} dollars at {d} percent a year. How much is it worth after {c} years?",
    "{name} is {b} years older than a sister who is {a}. How old will both be in {c} years?",
    "Convert {a} kilometres an hour to metres a second.",
    "A recipe for {d} people needs {p} grams of flour. How much do {c} people need?",
    "If {d} workers need {b} days for a wall, how long do {c} workers need?",
    "What is the greatest common divisor of {ad} and {bd}?",
    "Is {a} a prime number? Explain how you know.",
    "A coat costs {p} dollars. It is reduced by {b} percent. What is the new price?",
    "Write a word problem whose solution is {a} - {b}, and solve it.",
    "Explain how to divide {p} by {c} with long division.",
)


def draws(corpus: Path | None) -> Callable[[random.Random], str]:
    """Return what draws a prompt."""
    return draw


def draw(rng: random.Random) -> str:
    """Return a problem with numbers, names and things filled in."""
    a, b, c, d = (rng.randint(*ends) for ends in ((3, 99), (2, 40), (2, 12), (2, 9)))
    return rng.choice(PROBLEMS).format(
        a=a, b=b, c=c, d=d, p=a * 10, ac=a * c, bb=b + 60, bc=b + c, bcc=b + 2 * c, ad=a * d,
        bd=b * d, name=rng.choice(NAMES), things=rng.choice(THINGS),
    )  # fmt: skip
