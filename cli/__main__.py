"""`python -m cli`: the command where the project itself is not installed, as by buildpacks."""

from cli.main import main

main(prog_name="arkloop")
