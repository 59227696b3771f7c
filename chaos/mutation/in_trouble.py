"""Mutants that show when something dies, stands still or is away."""

from chaos.mutation.planting import Edit, Mutant, mutant

#: A zombie does not hear from the database that it is one, nor see it by its clock.
_ZOMBIES_GO_ON = (
    Edit(
        "worker/process/event_writer.py",
        'if row.fence != run.fence or row.state != "executing":',
        "if False:",
    ),
    Edit("worker/process/lease.py", "if held and not self.is_valid:", "if False:"),
)
_FENCE_OF_LEDGER = "            .where(_is_held(claim))\n            .with_for_update(read=True),\n"


MUTANTS: tuple[Mutant, ...] = (
    # ---- a worker is killed
    mutant(
        "numbers begin anew",
        "workers-killed",
        "I1 I2 I3 I4 I8 I10",
        Edit("shared/events/event_log.py", "encode(last + i, event, now)", "encode(i, event, now)"),
    ),
    mutant(
        "lost owners are not looked for",
        "workers-killed",
        "I5",
        Edit("shared/runs/sweep.py", "        recovery.recover_batch,\n", ""),
    ),
    mutant(
        "unfinished text is not declared void",
        "workers-killed",
        "I8 I10",
        Edit(
            "worker/attempt/execution.py",
            "run.void_lost(earlier.lost[0].seq, *preparation.cost_of_lost(agent, run, earlier))",
            "pass",
        ),
    ),
    mutant(
        "finished steps are made again",
        "workers-killed",
        "I8 I9 I10",
        Edit(
            "worker/attempt/execution.py",
            "loop.run(agent, run, active.stop, earlier.turns, earlier.limit_reached)",
            "loop.run(agent, run, active.stop, [])",
        ),
    ),
    mutant(
        "the tool ledger is ignored",
        "killed-in-tool",
        "I9",
        Edit("shared/runs/claims.py", "return bool(begun_by == claim.fence)", "return True"),
    ),
    mutant(
        "the terminal event has a transaction of its own",
        "killed-after-end",
        "I2 I3",
        Edit(
            "shared/runs/sql/end.sql",
            "FROM event JOIN ended USING (run_id)\n",
            "FROM event JOIN ended USING (run_id) WHERE false\n",
        ),
        Edit(
            "shared/runs/endings.py",
            "        tx.after_commit.append(event_log.Publish(ended))\n",
            "        class Later:\n"
            '            kind = subject = "later"\n'
            "            @staticmethod\n"
            "            def send(connections, _group) -> None:\n"
            "                with connections.transaction() as second:\n"
            "                    event_log.store(second, ended)\n"
            "\n"
            "        tx.after_commit.append(Later())\n",
        ),
    ),
    mutant(
        "events are published before their commit",
        "killed-before-publish",
        "I1 I2 I3 I8 I10",
        Edit(
            "worker/process/event_writer.py",
            "        with self._connections.statement() as tx:\n",
            "        event_log.publish(self._connections, "
            "{r.run_id: e for r, e in batch.items()})\n"
            '        fault_points.reach("worker.committed")\n'
            "        with self._connections.statement() as tx:\n",
        ),
        Edit(
            "worker/process/event_writer.py",
            '        fault_points.reach("worker.committed")\n        if written:\n',
            "        if False:\n",
        ),
    ),
    mutant(
        "crashes are not counted",
        "poison-run",
        "I5 I17",
        Edit(
            "shared/runs/recovery.py",
            '(0 if run["id"] in progressed else run["crashes"]) + int(is_crash[run["id"]])',
            "0",
        ),
    ),
    # ---- a worker is frozen, taken for lost, and continues
    mutant(
        "zombies write events",
        "zombie-cancelled",
        "I1 I2 I3 I8",
        Edit(
            "worker/process/event_writer.py",
            "JOIN locked l ON l.id = e.run_id AND l.fence = e.fence AND l.state = 'executing'",
            "JOIN locked l ON l.id = e.run_id",
        ),
    ),
    mutant(
        "zombies end runs",
        "zombie",
        "I2 I3 I8",
        *_ZOMBIES_GO_ON,
        Edit(
            "shared/runs/sql/end.sql",
            "    WHERE r.fence = e.fence AND r.state = 'executing'\n",
            "    WHERE r.state = 'executing'\n",
        ),
    ),
    mutant(
        "zombies call tools",
        "zombie-before-tools",
        "I9",
        *_ZOMBIES_GO_ON,
        Edit(
            "shared/runs/claims.py",
            _FENCE_OF_LEDGER,
            "            .where(runs.c.id == claim.run_id)\n"
            "            .with_for_update(read=True),\n",
        ),
        Edit("shared/runs/claims.py", "return bool(begun_by == claim.fence)", "return True"),
    ),
    mutant(
        "who has no lease takes runs",
        "lease-held-up",
        "I17",
        Edit(
            "worker/process/lease.py",
            "        return time.monotonic() - self._renewed_at < safe\n",
            "        return self._first.is_set() and safe > 0\n",
        ),
        Edit(
            "shared/runs/sql/claim.sql",
            "            AND seen_at > now() - make_interval(secs => %(safe_seconds)s)\n",
            "            AND %(safe_seconds)s > 0\n",
        ),
    ),
    # ---- Redis loses everything, or is away
    mutant(
        "what Redis lacks is not read from Postgres",
        "flushes",
        "I1 I2 I3",
        Edit(
            "api/streaming/page_reader.py",
            "                    of_table.append(read)\n",
            "                    self._nothing_there(read)\n",
        ),
    ),
    mutant(
        "numbers come from Redis",
        "flushes",
        "I1 I2 I3 I5",
        Edit(
            "shared/events/event_log.py",
            "    return [encode(last + i",
            "    newest = tx.connections.ask_redis(\n"
            "        lambda redis: redis.xrevrange(tx.connections.keys.events(run_id), count=1)\n"
            "    )\n"
            "    last = int(newest[0][0].partition('-')[0]) if newest else 0\n"
            "    return [encode(last + i",
        ),
    ),
    mutant(
        "a hole in the stream is passed over",
        "flushes",
        "I1 I2",
        Edit(
            "api/streaming/stream_pages.py",
            'if entry_id != b"%d-0" % (seq + 1) or ',
            "if ",
        ),
        Edit(
            "api/streaming/stream_pages.py",
            "        seq += 1\n",
            '        seq = int(entry_id.split(b"-")[0])\n',
        ),
    ),
    mutant(
        "queued runs wait for their message",
        "redis-away",
        "I5",
        Edit("worker/app.py", "            poller.start(started)\n", ""),
    ),
    mutant(
        "a cancel is a message and nothing else",
        "redis-away",
        "I11",
        Edit(
            "shared/runs/sql/cancel_tree.sql",
            "cancel_requested_at = coalesce(r.cancel_requested_at, now()),",
            "cancel_requested_at = r.cancel_requested_at,",
        ),
    ),
    # ---- Postgres is away
    mutant(
        "an unreachable Postgres is a fault of the service",
        "postgres-away",
        "A2",
        Edit(
            "shared/storage/connections.py",
            "if postgres.is_outage(error):",
            "if False:",
        ),
    ),
    mutant(
        "an outage of Postgres counts as a crash",
        "postgres-away",
        "I17",
        # By the sweep, and by the owner that lets its runs go.
        Edit(
            "shared/runs/sql/find_lost.sql",
            "coalesce(w.seen_at > pg_postmaster_start_time(), true) AS is_crash",
            "true AS is_crash",
        ),
        Edit(
            "worker/process/process.py",
            "is_crash = run_id not in self._outage_runs",
            "is_crash = True",
        ),
    ),
)
