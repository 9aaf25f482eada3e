"""All versions of the model code in Jais releases, as BLAKE3 digests of its files.

A version is a complete set of files. Files of two versions were never tested together, so a release with files of two
versions matches none. An earlier version can have fewer files.
"""

from __future__ import annotations

from collections.abc import Mapping

from checkpoint_convert.release import CODE_DIRECTORY, CODE_FILES
from checkpoint_convert.streaming.digest import file_digest

Version = Mapping[str, str]
"""Name of a file -> its digest."""

# Oldest first, the current one last, which a test holds. No version is ever removed: releases with it stay in use.
VERSIONS: tuple[Version, ...] = (
    {
        "configuration_jais.py": "2c71561a1ba89299fac821fe007683cdd0dc1afbe4a1ddeb34a066f3f5ee5e5b",
        "modeling_jais.py": "45aa962a67c53eb4b44fff8b5ecedeea0bc9ba994143afa058a9a4a1c0bd3f4f",
    },
    {
        "configuration_jais.py": "2c71561a1ba89299fac821fe007683cdd0dc1afbe4a1ddeb34a066f3f5ee5e5b",
        "modeling_jais.py": "bc45c3de013695c27575e7b5a3a0f9dd913da3e51a143adc564716a5063221ed",
    },
    {
        "alibi_jais.py": "e6333a1e370617533b6e70a96707efb4150ebfdb1f36bd3327b440216ecdb842",
        "configuration_jais.py": "2c71561a1ba89299fac821fe007683cdd0dc1afbe4a1ddeb34a066f3f5ee5e5b",
        "modeling_jais.py": "b26e72d30233f90be8e6b06edbaeea1bc324e75d1eafe9a48d90555e82d5ed01",
    },
    {
        "alibi_jais.py": "f8e4a45a86544a61864a54b29eefa2d252b7b26012adeb5ece15f1f450317221",
        "configuration_jais.py": "feecfe5bb349c353a215f329c66558c4f01b8f21dab23fdc4ef65c5450d235de",
        "modeling_jais.py": "75d2be66395872bd34d3763d3f4b44e1caee5378bfbb844fed3ecc366791a756",
    },
    {
        "alibi_jais.py": "940ee3cfe9b673e5d2170536a93de78e3aee4d0e25e84cad2ded98413f3989bd",
        "blocks_jais.py": "282a057f5668dcf1a71ce7d1e7d3ef9d25e04ff999965fb4de609e6b51294221",
        "configuration_jais.py": "feecfe5bb349c353a215f329c66558c4f01b8f21dab23fdc4ef65c5450d235de",
        "layers_jais.py": "83912b761842ec43ef1d9463835b0894127c1385eeca8e73473f951de11aebb9",
        "masks_jais.py": "3743dea4827bcef3a1744eaba053046ea1dc2332c32d7b3dc88837ffcbe0279b",
        "modeling_jais.py": "699398b34c4736cb6d2450bc058d8cd9089744c9cd61d8c1f91502f78aa9004c",
    },
    {
        "alibi_jais.py": "940ee3cfe9b673e5d2170536a93de78e3aee4d0e25e84cad2ded98413f3989bd",
        "blocks_jais.py": "7ed4750c8ecd0a18797f6dad49d61a361f1d8d78a0c3515193d8ffb43637715d",
        "configuration_jais.py": "feecfe5bb349c353a215f329c66558c4f01b8f21dab23fdc4ef65c5450d235de",
        "layers_jais.py": "83912b761842ec43ef1d9463835b0894127c1385eeca8e73473f951de11aebb9",
        "masks_jais.py": "3743dea4827bcef3a1744eaba053046ea1dc2332c32d7b3dc88837ffcbe0279b",
        "modeling_jais.py": "699398b34c4736cb6d2450bc058d8cd9089744c9cd61d8c1f91502f78aa9004c",
    },
)


def current_version() -> Version:
    """The version that this package writes into a release."""
    return {name: file_digest(CODE_DIRECTORY / name) for name in CODE_FILES}


def known_versions() -> tuple[Version, ...]:
    """All versions, oldest first, the current one last."""
    return (*VERSIONS, current_version())
