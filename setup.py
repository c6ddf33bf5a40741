"""The only build step that pyproject.toml cannot express: cffi's builder and the abi3 tag."""

from setuptools import setup

setup(
    cffi_modules=["_native/build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
