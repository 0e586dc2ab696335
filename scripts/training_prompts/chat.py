"""Prompts of a conversation: explanations, stories, letters, comparisons, advice."""

import random
from collections.abc import Callable
from pathlib import Path

from training_prompts import brown

SUBJECTS = (
    "rivers|bicycles|volcanoes|the moon|bread|honey bees|trains|the printing press|tea|chess|glass|"
    "magnets|the heart|rainbows|coffee|forests|deserts|whales|bridges|clocks|languages|music|paper|"
    "maps|the internet|electric cars|vaccines|gravity|sleep|memory|dreams|money|taxes|elections|"
    "gardens|soil|recycling|earthquakes|penguins|castles|photography|poetry|the ocean|batteries|"
    "solar panels|dinosaurs|cheese|olive oil|libraries|museums|football|running|yoga|mountains|"
    "wolves|ants|computers|databases|cryptography|compilers|neural networks|version control|"
    "operating systems|weather|hurricanes|the Roman Empire|ancient Egypt|the Silk Road|jazz"
).split("|")
PEOPLE = (
    "a fisherman|a young teacher|an old clockmaker|two brothers|a lost robot|a baker|a shy dragon|"
    "a night nurse|a painter who cannot see red|a gardener|a bus driver|a librarian|a cat|"
    "a retired pilot|a girl who collects stones|a violinist|a detective|a lighthouse keeper"
).split("|")
PLACES = (
    "a small harbour|a desert town|the night train|an empty school|a snowed-in village|the market|"
    "an island|a space station|the edge of a forest|a hospital"
).split("|")
STORIES = (
    "a short story|a poem|the beginning of a novel|a fairy tale|a diary entry|a dialogue".split("|")
)
EXPLAIN = (
    "Explain {} to a child.|Give me five facts about {}.|What makes {} important?|"
    "Write a short paragraph about {}.|What are the main problems with {}, and what can be done?|"
    "List ten words that have to do with {} and say what each means.|"
    "How has the world of {} changed?|"
    "Write an introduction to an article about {}.|Plan a one-hour lesson about {}.|"
    "What should a beginner know about {}?|Write three questions for a quiz about {}, with answers."
).split("|")
LETTERS = (
    "Write an e-mail to a colleague to arrange a meeting about {}.|"
    "Write a polite complaint about a course on {} that was cancelled.|"
    "Write a letter to a newspaper about {}.|Write an advertisement for a book about {}.|"
    "Make a to-do list for someone who prepares a talk about {}.|"
    "Write a speech of one minute about {}.|"
    "Suggest seven titles for a podcast about {}, with one sentence on each.|"
    "Write a table of contents for a book about {}.|"
    "My friend is tired of hearing about {}. How can I change the subject?|"
    "Act as an expert on {} and answer the three questions that you hear most often."
).split("|")
COMPARISONS = (
    "Compare {} with {}.|What do {} and {} have in common?|"
    "Is it better to learn about {} or about {}? Give reasons for both."
).split("|")
SINGLE = (
    "Define the terms that one needs in order to talk about {}.|"
    "Who should read a book about {}? Answer in a numbered list.|"
    "Tell the history of {} in a few dates."
).split("|")


def draws(corpus: Path | None) -> Callable[[random.Random], str]:
    """Return what draws a prompt; half of the subjects are nouns of the corpus, if it is there."""
    nouns = brown.plurals(corpus) if corpus else SUBJECTS

    def subject(rng: random.Random) -> str:
        return rng.choice(rng.choice((SUBJECTS, nouns)))

    def draw(rng: random.Random) -> str:
        kind = rng.randrange(5)
        if kind == 0:
            return (
                f"Write {rng.choice(STORIES)} about {rng.choice(PEOPLE)} in {rng.choice(PLACES)}."
            )
        if kind == 1:
            return rng.choice(COMPARISONS).format(subject(rng), subject(rng))
        wishes = (EXPLAIN, LETTERS, SINGLE)[kind - 2]
        return rng.choice(wishes).format(subject(rng))

    return draw
