"""All mutants.

A guard may hide behind another one, so a mutant may take several away. Its
scenario is the least that makes the difference visible from outside.
"""

from collections import defaultdict
from collections.abc import Mapping

from chaos.mutation import in_calm, in_trouble
from chaos.mutation.planting import Mutant

MUTANTS: tuple[Mutant, ...] = (*in_calm.MUTANTS, *in_trouble.MUTANTS)


def by_scenario() -> Mapping[str, list[Mutant]]:
    """Group all mutants by scenario."""
    found: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in MUTANTS:
        found[mutant.scenario].append(mutant)
    return found
