"""Sizes and SHA-256 digests of D4RL's files as TensorFlow Datasets published them (``checksums.tsv`` in the folders of
``tensorflow_datasets/d4rl``). D4RL itself publishes none, so files that are not listed here have none."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit


class Published(NamedTuple):
    """What is known of a file: its size in bytes and the hexadecimal digest of its content."""

    size: int
    sha256: str


_PUBLISHED = {
    "gym_mujoco_v2": """
hopper_expert-v2.hdf5 152427435 01aa219a5f8eea5e639eccdc636ec2bf40e317159a95cf4bf6e985f16909941b
hopper_full_replay-v2.hdf5 187998921 56baf95963c51c1e964049a974566c50ba80f289390565523e60c0ba83e0982e
hopper_medium-v2.hdf5 152756557 5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0
hopper_medium_expert-v2.hdf5 304537315 9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26
hopper_medium_replay-v2.hdf5 75854457 e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b
hopper_random-v2.hdf5 152525345 63103ef7059db4c0819bd054f4e83ff339030b50bcdb46bdbe50385f234b5054
halfcheetah_expert-v2.hdf5 237464597 d9fe53bb994eb1e20a99b4fa3412cd76a1bb7966a7ff55e0fcbdd6081bd2965f
halfcheetah_full_replay-v2.hdf5 291381762 27fdf7ea86e5a2cbd24d611ae9e703c86ec2e8e52823abc69dd9af6afb3a36c0
halfcheetah_medium-v2.hdf5 237727262 41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0
halfcheetah_medium_expert-v2.hdf5 474567252 015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06
halfcheetah_medium_replay-v2.hdf5 59448533 48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683
halfcheetah_random-v2.hdf5 237338037 25407aef85b5d16c0f36b4149341edb4acc6a9e88c1db529b2de19e7464874ba
walker2d_expert-v2.hdf5 230567195 2985dc3d436a8baa10e8f43f946fe1d7c6337a4e4fbc65def70618093b18c59a
walker2d_full_replay-v2.hdf5 285115514 f2720f9d27b2acef6ec9a7d9ad3b80b6c2078ad4467cee668a81e3b3c80bcf2a
walker2d_medium-v2.hdf5 232254996 cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda
walker2d_medium_expert-v2.hdf5 462197079 6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04
walker2d_medium_replay-v2.hdf5 86323963 e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db
walker2d_random-v2.hdf5 216109364 4e863bb6090cf4a461548bd470564b32f1ae5b32ef3085f816b2ede7f092e7fa
ant_expert-v2.hdf5 373231677 fa22531ca79ea051006fa48bb652120d2e12c813919c530369a03c2688311b0f
ant_full_replay-v2.hdf5 449390167 b95b0a7f34b1d5d1bedfded0f8e9cfc508b59de83cd4cbfb65b18dbd5056f26c
ant_medium-v2.hdf5 376239825 461c03b9f70f40d66b47608a92965e4ef3642bd9cdb1320d10acc92754167137
ant_medium_expert-v2.hdf5 748335217 8cfb64e62d8944b5d9dada5f0cfc13a295fafe0c6ba58b778e32ebf16c95aef1
ant_medium_replay-v2.hdf5 136482252 844c4e5743ef51091f2106a3570b257fb149032c4743f8a5f02f40adc3b42a46
ant_random-v2.hdf5 384466831 93cc10893eed2b8e17f81d1aa51dc23d27c5ca101a3804249f6bd038c6f06055
""",
    "hand_dapg_v1": """
door-cloned-v1.hdf5 294356136 1f6a60ecc4d2a2e5c02f41dd3412be61bb265a33dcf120ceee9e9682d4fe4d48
door-expert-v1.hdf5 536056678 66df4cd4e0a1e0b72ea72653ce088e29ecbfa99bac3cd2b52e64092e9a0aaab4
door-human-v1.hdf5 3121206 f9691288c3ddf2b4e7b31bdae0d8444b80ba035515495f8a902d60c43ee09370
hammer-cloned-v1.hdf5 446616879 e48d75b159bdd72f51d3f01448d3eca4d38275714e11e995c14a36f6cf159db3
hammer-expert-v1.hdf5 557047483 1c069a0f6e4852493023c77dc3b3a12d8d5ac2e3a034827fea3ab8a161e7185f
hammer-human-v1.hdf5 5606475 3e42f3f49b5c92a901601dfe867c6c62a9651cbe79f6760ec8b402a15816a498
pen-cloned-v1.hdf5 155074191 6d1a982cee1950501bedebbddedbcbb377e6284d379986c83abac8a6c0be0c22
pen-expert-v1.hdf5 262040663 3791b8ca6a802061770af2977c051ac3ae261488210ce73788760a5b8308f374
pen-human-v1.hdf5 2040573 209e345b2150b633f30a11612612c60f49e941f127ce6c4dc0cd790501c46f9f
""",
}
PUBLISHED = {
    f"{folder}/{name}": Published(int(size), digest)
    for folder, lines in _PUBLISHED.items()
    for name, size, digest in (line.split() for line in lines.split("\n") if line)
}


def published(address: str) -> Published | None:
    """
    What is known of the file at an address.

    :param address: of D4RL's server; its last folder and file name count
    """
    return PUBLISHED.get("/".join(urlsplit(address).path.split("/")[-2:]))
