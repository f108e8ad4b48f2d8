"""How colcon installs the node (ament_python)."""

from setuptools import setup

NAME = "tokprune_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/config", ["config/tokprune.yaml"]),
        (f"share/{NAME}/launch", ["launch/tokprune_launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="tokprune maintainers",
    maintainer_email="maintainers@tokprune.invalid",
    description="A lifecycle node that answers questions about a camera's pictures with tokprune.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"ask_node = {NAME}.node:main"]},
)
