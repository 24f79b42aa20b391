"""The Debian package: what is in it, and that the README's example is built and run against it."""

import os
import re
import shutil

import pytest
from native.test_embedding import (  # noqa: F401  (policy is a fixture)
    CONSUMER,
    CSRC,
    TOOLS,
    build,
    pkg_config,
    policy,
    run,
)

from sorl_fast.version import __version__

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool}: apt-get install {of}")
        for tool, of in [*((tool, tool) for tool in TOOLS), ("dpkg-deb", "dpkg")]
    ),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("debian")
    run("cmake", "-S", CSRC, "-B", root / "build", "-DCMAKE_INSTALL_PREFIX=/usr")
    build(root / "build")
    run("cpack", "-G", "DEB", cwd=root / "build")
    (found,) = (root / "build").glob("*.deb")
    shutil.move(found, root)
    shutil.rmtree(root / "build")  # what is installed must do without it
    return root / found.name


@pytest.fixture(scope="module")
def usr(package):
    run("dpkg-deb", "-x", package, package.parent / "root")
    return package.parent / "root" / "usr"


def test_what_it_says(package):
    assert re.fullmatch(rf"libsorl-fast_{__version__}_\w+\.deb", package.name)
    fields = run("dpkg-deb", "--field", package, text=True).stdout
    assert "Package: libsorl-fast\n" in fields
    assert f"Version: {__version__}\n" in fields
    if shutil.which("dpkg-shlibdeps"):
        assert re.search(r"^Depends: .*\blibstdc\+\+6\b", fields, re.MULTILINE)


def test_what_is_in_it(usr):
    """Nothing outside /usr, and all that README and robot.md name."""
    assert [p.name for p in usr.parent.iterdir()] == ["usr"]
    names = {p.name for p in usr.rglob("*")}
    headers = {p.name for p in (CSRC / "include" / "sorl_fast").iterdir()}
    cmake = {"sorl_fast-config.cmake", "sorl_fast-config-version.cmake", "sorl_fast-targets.cmake"}
    assert names >= headers | cmake | {
        "libsorl_fast.so",
        "libsorl_fast.a",
        "sorl_fast.pc",
        "copyright",
    }
    (library,) = usr.rglob("libsorl_fast.so")
    assert library.is_symlink()
    assert library.resolve().is_relative_to(usr)


@pytest.mark.parametrize("way", ["find_package", "pkg-config"])
def test_the_readmes_example_is_built_against_it(usr, policy, tmp_path, way):  # noqa: F811
    source = CSRC / "examples" / "fifteen_lines.cpp"
    if way == "pkg-config":
        flags = pkg_config(usr, "--cflags", "--libs")
        assert any(flag.startswith(f"-L{usr}") for flag in flags)
        program = tmp_path / "example"
        run(TOOLS[2], "-std=c++17", source, "-o", program, *flags)
    else:
        shutil.copy(source, tmp_path / "sample.cpp")
        (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
        (package,) = usr.rglob("sorl_fast-config.cmake")
        run(
            *("cmake", "-S", tmp_path, "-B", tmp_path / "build"),
            f"-Dsorl_fast_DIR={package.parent}",
        )
        build(tmp_path / "build")
        program = tmp_path / "build" / "static"
    (library,) = usr.rglob("libsorl_fast.so")
    environment = os.environ | {"LD_LIBRARY_PATH": str(library.parent)}
    out = run(program, policy, env=environment, text=True).stdout
    assert re.fullmatch(r"(\S+ ){3}\(status \d+, on \w+\)\n", out)
