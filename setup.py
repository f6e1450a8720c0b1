"""Builds the Cython modules; everything else is declared in pyproject.toml.

QUORATE_DEBUG=1 builds with bounds checks, assertions and debug symbols;
QUORATE_SANITIZE=address,undefined adds those sanitizers, with fuzzer-no-link coverage, too;
QUORATE_MODULES="core._wal bench._load" builds only the named modules.

Every .pyx is found, nothing is registered. Each kind of build has its own folder under `build/`, so
that changing kinds is a copy. The modules of `bench/` and `tests/` are built in place and are part
of no distribution.
"""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("QUORATE_DEBUG") == "1"
SANITIZE = os.environ.get("QUORATE_SANITIZE", "")
# What fuzzers are led by needs another compiler (CC=clang) than the rest.
KIND = "fuzz" if "fuzzer" in SANITIZE else "sanitize" if SANITIZE else "debug" if DEBUG else ""
BUILD = Path("build", KIND)
TAG = sys.implementation.cache_tag
CORES = len(os.sched_getaffinity(0))
SOURCE = Path("src/quorate")
PACKAGES = {
    "core": SOURCE,
    "frontends": SOURCE,
    "workers": SOURCE,
    "bench": Path(),
    "tests": Path(),
}
CHECKOUT_ONLY = ("bench.", "tests.")


def modules() -> list[str]:
    """The modules to build, by the names of QUORATE_MODULES: folder and file."""
    named = os.environ.get("QUORATE_MODULES", "").split()
    found = [
        f"{package}.{path.stem}"
        for package, parent in PACKAGES.items()
        for path in sorted((parent / package).glob("*.pyx"))
    ]
    if unknown := set(named) - set(found):
        raise SystemExit(f"no such module: {' '.join(sorted(unknown))}")
    return named or found


def extension(name: str) -> Extension:
    """The build recipe of one module."""
    package, stem = name.split(".")
    flags = ["-O1", "-g"] if DEBUG else ["-O3", "-g1"]
    flags += ["-Wno-unused-function", "-Wno-unused-variable"]
    # Only what uses the library is linked to it.
    link = ["-Wl,--as-needed"]
    if SANITIZE:
        flags += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
        link += [f"-fsanitize={SANITIZE}"]
    return Extension(
        name if name.startswith(CHECKOUT_ONLY) else f"quorate.{name}",
        [str(PACKAGES[package] / package / f"{stem}.pyx")],
        libraries=["nghttp2"] if package != "core" else [],
        extra_compile_args=flags,
        extra_link_args=link,
        define_macros=[("QUORATE_DEBUG", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
        depends=["setup.py"],
    )


class BuildModules(build_ext):
    """Compiles on all cores, and replaces in place only what differs, each file at once."""

    def initialize_options(self) -> None:
        """Set the number of compilers that run at once."""
        super().initialize_options()
        self.parallel = CORES

    def finalize_options(self) -> None:
        """Have `pip install -e` and tools/build compile into one place: once, not twice."""
        super().finalize_options()
        if self.inplace or self.editable_mode:
            self.build_temp = str(BUILD / f"temp-{TAG}")
            self.build_lib = str(BUILD / f"lib-{TAG}")

    def run(self) -> None:
        """Build, without the checkout's own modules unless the checkout is where they go."""
        if not self.inplace:
            self.extensions = [
                module for module in self.extensions if not module.name.startswith(CHECKOUT_ONLY)
            ]
        super().run()

    def copy_extensions_to_source(self) -> None:
        """Put what was built beside its source."""
        for module in self.extensions:
            file = Path(self.get_ext_filename(module.name))
            built = self.build_lib / file
            place = file if module.name.startswith(CHECKOUT_ONLY) else "src" / file
            if not place.exists() or identity(place) != identity(built):
                new = place.with_suffix(".new")
                shutil.copy2(built, new)
                new.replace(place)


def identity(path: Path) -> tuple[int, int]:
    """What differs between two builds of a file and survives copying."""
    return path.stat().st_mtime_ns, path.stat().st_size


setup(
    cmdclass={"build_ext": BuildModules},
    options={"build": {"build_base": str(BUILD)}},
    ext_modules=cythonize(
        [extension(name) for name in modules()],
        build_dir=str(BUILD / "cython"),
        include_path=["src", "."],
        nthreads=CORES if multiprocessing.get_start_method() == "fork" else 0,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
        },
    ),
)
