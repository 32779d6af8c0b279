"""The training pictures of the built-in models: Noto emoji from the npm package `emoji-datasource-google`.

Used by the training and evaluation scripts only. The package (Apache-2.0 images) and the CLIP vocabulary
(wheel `open-clip-torch`, MIT) are fetched by name with the ordinary clients, `npm` and `pip`.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EMOJI_PACKAGE = "emoji-datasource-google@16.0.0"
CLIP_WHEEL = "open-clip-torch==3.3.0"

# The seven expressions, in words the classifier's labels can be matched with: label -> (caption, short name).
EXPRESSIONS = {
    "sad": ("a sad face", "disappointed"),
    "disgust": ("a disgusted face", "nauseated_face"),
    "angry": ("an angry face", "rage"),
    "neutral": ("a neutral face", "neutral_face"),
    "fear": ("a fearful face", "fearful"),
    "surprise": ("a surprised face", "astonished"),
    "happy": ("a happy face", "smiley"),
}

# ruff: noqa: E501 (a table reads best with full lines)
_THINGS = """
ghost:a ghost alien:an alien skull:a skull robot_face:a robot clown_face:a clown hankey:a pile of poo
heart:a red heart blue_heart:a blue heart green_heart:a green heart yellow_heart:a yellow heart
purple_heart:a purple heart black_heart:a black heart broken_heart:a broken heart boom:an explosion kiss:a kiss mark
seedling:a seedling evergreen_tree:an evergreen tree deciduous_tree:a deciduous tree palm_tree:a palm tree
cactus:a cactus tulip:a tulip cherry_blossom:a cherry blossom rose:a rose hibiscus:a hibiscus sunflower:a sunflower
four_leaf_clover:a four leaf clover maple_leaf:a maple leaf mushroom:a mushroom potted_plant:a potted plant
bouquet:a bouquet of flowers lotus:a lotus 
dragon:a dragon crocodile:a crocodile whale:a whale snail:a snail snake:a snake sheep:a sheep
monkey_face:a monkey face rooster:a rooster elephant:an elephant octopus:an octopus shell:a spiral shell bug:a caterpillar
ant:an ant bee:a honey bee ladybug:a ladybug tropical_fish:a tropical fish blowfish:a blowfish turtle:a turtle
baby_chick:a baby chick penguin:a penguin koala:a koala camel:a camel dolphin:a dolphin
mouse:a mouse face cow:a cow face tiger:a tiger face rabbit:a rabbit face cat:a cat face horse:a horse face dog:a dog face
pig:a pig face frog:a frog face bear:a bear face panda_face:a panda face
spider:a spider crab:a crab lion_face:a lion face 
unicorn_face:a unicorn duck:a duck bat:a bat shark:a shark owl:an owl fox_face:a fox face
butterfly:a butterfly giraffe_face:a giraffe hedgehog:a hedgehog
peacock:a peacock parrot:a parrot lobster:a lobster 
flamingo:a flamingo jellyfish:a jellyfish
hotdog:a hot dog corn:an ear of corn tomato:a tomato eggplant:an eggplant grapes:a bunch of grapes
watermelon:a watermelon tangerine:a tangerine lemon:a lemon banana:a banana pineapple:a pineapple apple:a red apple
green_apple:a green apple peach:a peach cherries:cherries strawberry:a strawberry hamburger:a hamburger pizza:a slice of pizza
poultry_leg:a chicken leg ramen:a bowl of ramen fries:french fries sushi:sushi
icecream:an ice cream cone doughnut:a doughnut cookie:a cookie chocolate_bar:a chocolate bar candy:a candy
lollipop:a lollipop honey_pot:a honey pot cake:a slice of cake wine_glass:a glass of wine
cocktail:a cocktail beer:a mug of beer popcorn:popcorn birthday:a birthday cake croissant:a croissant avocado:an avocado
cucumber:a cucumber carrot:a carrot egg:an egg coconut:a coconut broccoli:broccoli
pretzel:a pretzel cheese_wedge:a wedge of cheese 
bubble_tea:a bubble tea bell_pepper:a bell pepper 
rainbow:a rainbow volcano:a volcano ocean:an ocean wave earth_americas:the earth full_moon:a full moon
sun_with_face:the sun with a face cloud:a cloud fire:a fire droplet:a drop of water snowflake:a snowflake star:a star
zap:a lightning bolt tornado:a tornado ringed_planet:a ringed planet snowman:a snowman
ferris_wheel:a ferris wheel circus_tent:a circus tent house:a house 
european_castle:a castle tokyo_tower:a tower statue_of_liberty:the statue of liberty rocket:a rocket
helicopter:a helicopter steam_locomotive:a steam locomotive bus:a bus fire_engine:a fire engine
car:a red car truck:a truck tractor:a tractor ship:a ship airplane:an airplane
flying_saucer:a flying saucer anchor:an anchor traffic_light:a traffic light hourglass:an hourglass
alarm_clock:an alarm clock umbrella:an umbrella tent:a tent
gift:a gift jack_o_lantern:a jack o lantern christmas_tree:a christmas tree balloon:a balloon art:a paint palette
dart:a dart board 8ball:an eight ball game_die:a game die basketball:a basketball trophy:a trophy 
volleyball:a volleyball soccer:a soccer ball baseball:a baseball crystal_ball:a crystal ball teddy_bear:a teddy bear
kite:a kite 
guitar:a guitar crown:a crown tophat:a top hat eyeglasses:eyeglasses
jeans:jeans dress:a dress high_heel:a high heel shoe ring:a ring gem:a gem stone bulb:a light bulb bomb:a bomb
moneybag:a money bag computer:a laptop floppy_disk:a floppy disk book:an open book 
camera:a camera tv:a television key:a key lock:a padlock bell:a bell hammer:a hammer scissors:scissors
candle:a candle magnet:a magnet door:a door headphones:headphones toilet:a toilet
"""


def captions() -> dict[str, str]:
    """Caption -> emoji short name: the seven expressions first, then the things."""
    found = {caption: name for caption, name in EXPRESSIONS.values()}
    words = _THINGS.split()
    caption: list[str] = []
    name = ""
    for word in words:
        if ":" in word:
            if name:
                found[" ".join(caption)] = name
            name, first = word.split(":")
            caption = [first]
        else:
            caption.append(word)
    found[" ".join(caption)] = name
    return found


class EmojiSet:
    """The unpacked package: 64-pixel pictures by short name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, dict[str, Any]] = {
            e["short_name"]: e for e in json.loads((root / "emoji.json").read_text()) if e["has_img_google"]
        }

    def names(self) -> list[str]:
        return sorted(self.entries)

    def category(self, name: str) -> str:
        return str(self.entries[name]["category"])

    def rgba(self, name: str) -> Image.Image:
        """The picture with its transparency, 64 x 64."""
        return Image.open(self.root / "img/google/64" / self.entries[name]["image"]).convert("RGBA")

    def on_white(self, name: str, size: int = 64) -> np.ndarray[Any, Any]:
        """uint8 [size, size, 3]: the picture on a white background."""
        return self.on_ground(name, (255, 255, 255), size)

    def on_ground(self, name: str, colour: tuple[int, int, int], size: int = 64) -> np.ndarray[Any, Any]:
        """uint8 [size, size, 3]: the picture on a background of one colour."""
        picture = self.rgba(name)
        ground = Image.new("RGBA", picture.size, (*colour, 255))
        ground.alpha_composite(picture)
        return np.asarray(ground.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def emoji_set(folder: Path) -> EmojiSet:
    """The emoji package under `folder`, fetched with npm on the first call."""
    package = folder / "package"
    if not (package / "emoji.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", EMOJI_PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(folder.glob("emoji-datasource-google-*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
    return EmojiSet(package)


def write_clip_vocabulary(folder: Path) -> None:
    """Write CLIP's vocab.json and merges.txt (49,408 entries, 48,894 merges) into `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, CLIP_WHEEL]
        subprocess.run(command, check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        packed = zipfile.ZipFile(wheel).read("open_clip/bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(_byte_letters().values())
    vocab = letters + [letter + "</w>" for letter in letters] + ["".join(m.split()) for m in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, in CLIP's vocabulary order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(printable))
    return table
