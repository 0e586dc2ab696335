"""Prompts in French, Spanish, German, Italian and Portuguese, and translations."""

import random
from collections.abc import Callable
from pathlib import Path

from training_prompts import brown

# Of each language: what is asked, and the subjects that fit there, with their article.
FRENCH = (
    "Qu'est-ce que {} ?|Explique {} à un enfant.|Écris un court paragraphe sur {}.|"
    "Donne-moi cinq faits sur {}.|Écris un poème sur {}.|Pourquoi {} compte pour les gens ?|"
    "Raconte une histoire sur {}.|Écris une lettre à un ami sur {}.",
    "le pain|la mer|le train|la forêt|le chat|la musique|le jardin|la pluie|le fromage|l'école|"
    "la lune|le marché|la montagne|le vélo|la famille|le soleil|l'hiver|la cuisine|le livre|"
    "le cinéma|l'eau|la santé|le travail|la ville|le sommeil|l'amitié|la rivière|le voyage|"
    "la langue française|la démocratie|l'électricité|le cheval|la peinture|le temps|la radio",
)
SPANISH = (
    "¿Qué es {}?|Explica {} a un niño.|Escribe un párrafo breve sobre {}.|"
    "Dame cinco datos sobre {}.|Escribe un poema sobre {}.|¿Por qué es importante {}?|"
    "Cuenta una historia sobre {}.|Escribe una carta a un amigo sobre {}.",
    "el pan|el mar|el tren|el bosque|el gato|la música|el jardín|la lluvia|el queso|la escuela|"
    "la luna|el mercado|la montaña|la bicicleta|la familia|el sol|el invierno|la cocina|el libro|"
    "el cine|el agua|la salud|el trabajo|la ciudad|el sueño|la amistad|el río|el viaje|"
    "la lengua española|la democracia|la electricidad|el caballo|la pintura|el tiempo|la radio",
)
GERMAN = (
    "Was ist {}?|Erkläre einem Kind: {}.|Schreibe einen kurzen Absatz zum Thema: {}.|"
    "Nenne fünf Tatsachen zum Thema: {}.|Schreibe ein Gedicht, Thema: {}.|"
    "Warum ist {} wichtig?|Erzähle eine Geschichte. Ihr Thema ist {}.|"
    "Schreibe einem Freund einen Brief. Das Thema ist {}.",
    "das Brot|das Meer|der Zug|der Wald|die Katze|die Musik|der Garten|der Regen|der Käse|"
    "die Schule|der Mond|der Markt|der Berg|das Fahrrad|die Familie|die Sonne|der Winter|"
    "das Kochen|das Buch|das Kino|das Wasser|die Gesundheit|die Arbeit|die Stadt|der Schlaf|"
    "die Freundschaft|der Fluss|die Reise|die deutsche Sprache|die Demokratie|der Strom|"
    "das Pferd|die Malerei|die Zeit|das Radio",
)
ITALIAN = (
    "Che cos'è {}?|Spiega {} a un bambino.|Scrivi un breve paragrafo su questo tema: {}.|"
    "Dimmi cinque fatti su questo tema: {}.|Scrivi una poesia. Il tema è {}.|"
    "Perché è importante {}?|Racconta una storia. Il tema è {}.|"
    "Scrivi una lettera a un amico. Il tema è {}.",
    "il pane|il mare|il treno|il bosco|il gatto|la musica|il giardino|la pioggia|il formaggio|"
    "la scuola|la luna|il mercato|la montagna|la bicicletta|la famiglia|il sole|l'inverno|"
    "la cucina|il libro|il cinema|l'acqua|la salute|il lavoro|la città|il sonno|l'amicizia|"
    "il fiume|il viaggio|la lingua italiana|la democrazia|l'elettricità|il cavallo|la pittura|"
    "il tempo|la radio",
)
PORTUGUESE = (
    "O que é {}?|Explique {} a uma criança.|Escreva um parágrafo curto sobre este tema: {}.|"
    "Diga cinco fatos sobre este tema: {}.|Escreva um poema. O tema é {}.|"
    "Por que {} é importante?|Conte uma história. O tema é {}.|"
    "Escreva uma carta a um amigo. O tema é {}.",
    "o pão|o mar|o trem|a floresta|o gato|a música|o jardim|a chuva|o queijo|a escola|a lua|"
    "o mercado|a montanha|a bicicleta|a família|o sol|o inverno|a cozinha|o livro|o cinema|"
    "a água|a saúde|o trabalho|a cidade|o sono|a amizade|o rio|a viagem|a língua portuguesa|"
    "a democracia|a eletricidade|o cavalo|a pintura|o tempo|o rádio",
)
ASKED = [tuple(part.split("|") for part in one)
         for one in (FRENCH, SPANISH, GERMAN, ITALIAN, PORTUGUESE)]  # fmt: skip
NAMES = ("French", "Spanish", "German", "Italian", "Portuguese")
TRANSLATE = (
    "Translate to {language}:\n\n{text}|How do you say this in {language}? {text}|"
    "Translate this sentence to {language} and explain the grammar: {text}"
).split("|")
SHORTEST, LONGEST = 30, 160  # characters of a sentence to translate
WITHOUT_CORPUS = (
    "Where is the station?",
    "I would like a cup of tea.",
    "The book is on the table.",
)


def draws(corpus: Path | None) -> Callable[[random.Random], str]:
    """Return what draws a prompt; a quarter are translations, of sentences of the corpus."""
    sentences = WITHOUT_CORPUS
    if corpus:
        texts = (text for _, text in brown.paragraphs(corpus))
        sentences = tuple(text for text in texts if SHORTEST < len(text) < LONGEST)

    def draw(rng: random.Random) -> str:
        if rng.randrange(4) == 0:
            text, language = rng.choice(sentences), rng.choice(NAMES)
            return rng.choice(TRANSLATE).format(language=language, text=text)
        templates, subjects = rng.choice(ASKED)
        return rng.choice(templates).format(rng.choice(subjects))

    return draw
