"""The command line of `sorl-fast export`."""

import argparse

from ..flags import path_argument

FORMATS = ("onnx",)
SOURCES = ("input", "philox")  # of the noise
PRECISIONS = ("fp32", "bf16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, all but RUN's default values None: the policy's own."""
    parser.add_argument(
        "run", metavar="RUN", type=path_argument, help="a run's folder or a policy file"
    )
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format of the graph")
    parser.add_argument(
        "--out", metavar="FILE", type=path_argument, required=True, help="where to write it"
    )
    parser.add_argument(
        "--steps", metavar="S", help="M, or sizes such as 1/2,1/4,1/4 (default: the policy's own)"
    )
    parser.add_argument(
        "--candidates", metavar="N", type=int, help="candidates (default: the policy's own)"
    )
    parser.add_argument(
        "--rule", help="how one is chosen, such as argmax or medoid:1/2 (default: the policy's own)"
    )
    parser.add_argument(
        "--noise",
        choices=SOURCES,
        default=SOURCES[0],
        help="an input, or drawn in the graph from a seed and the number of the call (default: input)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the networks' products (default: fp32)",
    )
