"""`python -m arkloop.cli`: the command where the project is not installed, as by buildpacks."""

from arkloop.cli.main import main

main(prog_name="arkloop")
