"""Mutants that a load alone shows, with no fault at all."""

from chaos.mutation.planting import Edit, Mutant, mutant

#: The index is there after the migration, so it goes with the first run.
_TWO_ACTIVE_RUNS = (
    Edit(
        "shared/runs/new_runs.py",
        "    # What stands for none is not inserted.\n",
        "    # What stands for none is not inserted.\n"
        "    tx.sql.exec_driver_sql('DROP INDEX IF EXISTS uq_runs_unended_thread_id')\n",
    ),
    Edit(
        "shared/runs/sql/create.sql",
        "r.thread_id = t.id\n"
        "                AND r.state IN ('queued', 'executing', 'waiting', 'suspended') LIMIT 1\n",
        "false LIMIT 1\n",
    ),
    Edit(
        "shared/runs/sql/create.sql",
        "ON CONFLICT (thread_id) WHERE state IN ('queued', 'executing', 'waiting', 'suspended')\n"
        "        DO NOTHING\n",
        "",
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "numbers have holes",
        "plain",
        "I1 I2",
        Edit(
            "worker/process/run_log.py",
            "first = self._last_seq + 1\n",
            "first = self._last_seq + 2\n",
        ),
        Edit(
            "worker/process/run_log.py",
            "self._last_seq += len(encoded)",
            "self._last_seq += len(encoded) + bool(encoded)",
        ),
    ),
    mutant(
        "inputs are used again and again",
        "questions",
        "I12",
        Edit(
            "shared/runs/claims.py",
            ".where(inputs.c.run_id.in_(run_ids), inputs.c.consumed_at.is_(None))",
            ".where(inputs.c.run_id.in_(run_ids))",
        ),
    ),
    mutant(
        "inputs are taken and not announced",
        "questions",
        "I12",
        Edit("shared/runs/claims.py", "            *answers.get(row.run_id, ()),\n", ""),
    ),
    mutant(
        "a thread has two active runs",
        "plain",
        "I7",
        *_TWO_ACTIVE_RUNS,
    ),
    mutant(
        "the Idempotency-Key is ignored",
        "plain",
        "I6",
        # A busy thread would refuse the second run: one guard behind the other.
        *_TWO_ACTIVE_RUNS,
        Edit(
            "api/http/idempotency.py", "            key = check_key()\n", "            key = None\n"
        ),
    ),
    mutant(
        "everybody reads every run",
        "plain",
        "I15",
        Edit(
            "shared/runs/queries.py",
            '.where(runs.c.id == bindparam("run_id"), IS_VISIBLE_OR_DELETED)',
            '.where(runs.c.id == bindparam("run_id"))',
        ),
        Edit(
            "api/streaming/run_heads.py",
            "self.org_id == actor.org_id\n"
            "            and self.only_for in (None, actor.reader_of_private)\n",
            "True\n",
        ),
    ),
    mutant(
        "usage begins anew with each claim",
        "questions",
        "I18",
        Edit(
            "worker/attempt/preparation.py",
            "run.admission.totals = recorded_totals(sql, run_id)",
            "pass",
        ),
    ),
    mutant(
        "an ended stream is opened again",
        "plain",
        "I19",
        Edit(
            "api/endpoints/events.py",
            "if is_all and cursor in resumed:",
            "if False:",
        ),
    ),
)
