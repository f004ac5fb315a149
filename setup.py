"""The pipeline files lie beside the package in a checkout, and in it where it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["spptransfer*"]), "spptransfer.pipelines"],
    package_dir={"spptransfer.pipelines": "pipelines"},
)
