"""An attempt of a run: claim it, run the loop, record one outcome."""

import logging
import time
from contextlib import closing
from dataclasses import replace
from uuid import UUID

from arkloop.shared import fault_points, logs, times
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona, tools_of_server
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost, PersonaNotFound, Unavailable
from arkloop.shared.events import event_log, types
from arkloop.shared.events.types import DELEGATE, Event
from arkloop.shared.runs import overrides
from arkloop.shared.runs.transitions import recorded_totals
from arkloop.shared.security.egress import FETCH_ALLOWED_NETWORKS, Policy
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.notifications import Enqueue
from arkloop.worker import providers, tools
from arkloop.worker.agent import client_tools, loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import History, ResumeState, counted_of, resume_state_from
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.attempt import custom_agent, delegating, failure_log, worker_tools
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.outcome import (
    Cancelled,
    Completed,
    Failed,
    Outcome,
    Waiting,
    outcome_of,
)
from arkloop.worker.attempt.recorder import Recorder
from arkloop.worker.contract.identity import RunIdentity
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import DeadlineExceeded, ProviderError, RunFailure, StopRun
from arkloop.worker.http_tools import tools as http_tools
from arkloop.worker.mcp.tools import tools_of
from arkloop.worker.process import history
from arkloop.worker.process.history import most_bytes
from arkloop.worker.process.process import ActiveRun, WorkerProcess
from arkloop.worker.process.run_log import RunLog
from arkloop.worker.providers import Provider, context_sizes
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.tools import search_tools

log = logging.getLogger(__name__)

#: Seconds for which the process that parked a run listens for its input, while slots are free.
LINGER_SECONDS = 2.0
LEASE_WAIT_SECONDS = 10.0
#: What the events say broke a route that the run was to go on with.
ROUTE_GONE = "provider.invalid_request"
#: Processes may choose the same runs: what one of them loses, it chooses again as often as this.
MAX_CHOICES = 4
#: It may come straight back: not more often than this.
SEND_ON_SECONDS = 0.2


def execute_in_turn(process: WorkerProcess, run_id: UUID, *, by_message: bool = False) -> None:
    """Execute the run, or, while the queue is long, the one whose turn it is.

    If another process has that one by then, its org has another turn, a few times; then the run
    itself is executed.
    """
    lost = None
    for _ in range(MAX_CHOICES):
        if not process.queue_is_long or process.draining.is_set():
            break
        turn = _turn(process, run_id, lost)
        if turn == run_id:
            break
        if execute(process, turn):
            return
        lost = turn
    execute(process, run_id, by_message=by_message)


def _turn(process: WorkerProcess, run_id: UUID, lost: UUID | None) -> UUID:
    try:
        return process.whose_turn((run_id, lost))
    except Unavailable:
        return run_id


def execute(process: WorkerProcess, run_id: UUID, *, by_message: bool = False) -> bool:
    """Claim the run if it is queued, and execute it until it ends, waits or must be let go.

    Returns whether it could be claimed. `by_message`: a message named it, and not a look into
    Postgres.
    """
    was_claimed = False
    while True:
        if process.draining.is_set():
            _send_on(process, run_id)
            return was_claimed
        # Not claimed here, it stays queued: another worker finds it.
        if not process.lease.wait_until_valid(LEASE_WAIT_SECONDS):
            return was_claimed
        fault_points.reach("worker.popped")
        with process.track(run_id) as active:
            parked = _attempt(process, active, by_message=by_message)
            was_claimed = was_claimed or parked is not None
            has_capacity = process.free_slots > process.settings.worker_concurrency // 2
            if not parked or not has_capacity or process.draining.is_set():
                return was_claimed
            if not active.answered.wait(LINGER_SECONDS):
                return was_claimed


def _send_on(process: WorkerProcess, run_id: UUID) -> None:
    """Enqueue the run again for another worker: this one stops, but still takes messages for a
    moment.
    """
    time.sleep(SEND_ON_SECONDS)
    process.connections.notify(Enqueue(run_id))


def _attempt(process: WorkerProcess, active: ActiveRun, *, by_message: bool) -> bool | None:
    """Make one attempt; return whether the run now waits for a person, None if it has no claim."""
    began = time.monotonic()
    try:
        claim = _claim(process, active, by_message=by_message)
        if claim is None:
            return None
        logs.bind(run_id=str(claim.run_id), trace_id=claim.trace_id, attempt=claim.attempt)
        outcome = _carry_out(process, active, claim)
        log.info("attempt ended", extra={"duration_ms": round((time.monotonic() - began) * 1000)})
        return isinstance(outcome, Waiting)
    except (LeaseLost, Unavailable) as error:
        log.warning("abandoning run: its lease may have expired: %s", error.__cause__)
        process.mark_outage(active.run_id)
        return False
    finally:
        process.leave_quarantine(active)
        logs.clear()


def _claim(process: WorkerProcess, active: ActiveRun, *, by_message: bool) -> Claim | None:
    process.enter_quarantine(active)
    claim = process.claim(active)
    if claim is None:
        return None
    process.mark_wait(claim, by_message=by_message)
    if by_message:
        process.mark_delivered(claim.queued_at)
    fault_points.reach("worker.claimed")
    if not claim.is_suspect:
        process.leave_quarantine(active)
    return claim


def _carry_out(process: WorkerProcess, active: ActiveRun, claim: Claim) -> Outcome:
    """Execute the claimed run and record what becomes of it; return the outcome recorded."""
    run = _claimed_run(process, active, claim)
    recorder = Recorder(process.connections, run, process.end)
    outcome = _perform(process, active, run)
    try:
        is_recorded = recorder.record(outcome)
    except Exception as error:  # it cannot be stored
        outcome = outcome_of(error)
        is_recorded = recorder.record(outcome)
    if not is_recorded:  # a cancel was accepted first
        outcome = Cancelled()
        recorder.record(outcome)
    if isinstance(outcome, Completed | Failed | Cancelled | Waiting):
        process.webhooks.wake(claim.org_id)
    if run.may_have_sub_runs and isinstance(outcome, Completed | Failed | Cancelled):
        delegating.cancel_left(process, run)
    if isinstance(outcome, Failed):
        route = run.chain.route if run.chain else None
        failure_log.report(outcome.error, claim.route_id, route, outcome.cause)
    return outcome


def _claimed_run(process: WorkerProcess, active: ActiveRun, claim: Claim) -> ClaimedRun:
    run_log = RunLog(
        claim.run_id,
        claim.fence,
        claim.last_seq,
        active.stop,
        process.writer.mark,
        times.clock_set_to(claim.claimed_at),
        process.settings.run_output_mib * 1024 * 1024,
        server=claim.server,
    )
    return ClaimedRun(
        process.connections,
        claim,
        run_log,
        active.stop,
        process.limits,
        process.files,
        lambda: process.leave_quarantine(active),
    )


def _perform(process: WorkerProcess, active: ActiveRun, run: ClaimedRun) -> Outcome:
    """Execute the run up to its outcome; here alone an exception becomes one."""
    try:
        return Completed(_answer(process, active, run))
    except (StopRun, Exception) as reason:
        return outcome_of(reason)


def _answer(process: WorkerProcess, active: ActiveRun, run: ClaimedRun) -> Answer:
    """Prepare the agent, let it continue after earlier attempts, and return its final answer."""
    claim = run.claim
    # First what it has cost: whatever fails from here on, a run ends with that.
    earlier = _resume(process.connections, run) if run.is_resumed else ResumeState()
    persona = _persona(process, claim)
    run.admission.set_persona(persona)
    run.may_have_sub_runs = bool(persona.delegates)
    active.limit_time(persona.timeout_seconds, claim.used_seconds)
    if persona.agent is not None:
        return _answer_of_agent(run, persona, earlier, process)
    run.steered = earlier.steered
    run.chain = chain = _chain(process, run, persona, earlier)
    loader, most, windows = process.histories, most_bytes(chain, persona), chain.windows
    try:
        with loader.history_of(claim, most, run, windows) as seen, closing(chain):
            agent = _agent(process, run, persona, chain, _continued(seen, run, earlier))
            if earlier.lost:
                run.void_lost(earlier.lost[0].seq, *_cost_of_lost(agent, run, earlier))
            if chain.route.id != (in_use := earlier.route_id or claim.route_id):
                route = chain.route
                run.emit(types.RunFallback(in_use, route.id, route.model, ROUTE_GONE))
            if run.is_resumed:
                run.admission.take_over()
                if run.may_have_sub_runs:
                    delegating.announce(process, run)
            return loop.run(agent, run, active.stop, earlier.turns, earlier.limit_reached)
    except DeadlineExceeded:
        if persona.on_limit == "fail":
            raise
        return loop.cut_off(persona, run, earlier.limit_reached or "timeout", run.last_cost())


def _answer_of_agent(
    run: ClaimedRun, persona: Persona, earlier: ResumeState, process: WorkerProcess
) -> Answer:
    try:
        return custom_agent.carry_out(process, run, _identity(run.claim), persona, earlier)
    except DeadlineExceeded:
        if persona.on_limit == "fail":
            raise
        return loop.cut_off(persona, run, "timeout", run.last_cost())


def _persona(process: WorkerProcess, claim: Claim) -> Persona:
    """Load the persona, with the run's overrides.

    Raises:
        RunFailure: this worker cannot, though the API could.
    """
    try:
        persona = process.catalog.persona(claim.org_id, claim.persona_id)
        return overrides.apply(persona, claim.options)
    except PersonaNotFound as error:
        log.error("%s", error.details["persona_id"][0])
        message = f"This worker cannot load persona {claim.persona_id!r}; see the worker logs."
        raise RunFailure("worker.crashed", message, retryable=True) from error


def _chain(
    process: WorkerProcess, run: ClaimedRun, persona: Persona, earlier: ResumeState
) -> RouteChain:
    """Build the route chain.

    Raises:
        ProviderError: this worker does not have the run's route.
        StopRun: the run has to stop while a server is asked for the context of its model.
    """
    settings, claim = process.settings, run.claim
    routes = process.catalog.chain(claim.org_id, persona, claim.route_id)
    if not routes:
        raise ProviderError("invalid_request", f"Route {claim.route_id!r} no longer exists.")
    # A route that broke in an earlier attempt is not tried again.
    routes = next((routes[i:] for i, r in enumerate(routes) if r.id == earlier.route_id), routes)

    def egress(route: Route) -> Policy | None:
        return Policy.of(settings.allowed_networks) if route.is_of_org else None

    def connect(route: Route) -> Provider:
        return providers.load(route, faults=settings.faults, egress=egress(route))

    def ask(route: Route) -> int | None:
        return context_sizes.ask(route, egress(route), run)

    sizes = process.context_sizes
    sized = [sizes.complete(route, ask) for route in routes]
    return RouteChain(sized, connect, earlier.dropped_settings, sizes.learn)


def _agent(
    process: WorkerProcess, run: ClaimedRun, persona: Persona, chain: RouteChain, seen: History
) -> Agent:
    settings, claim = process.settings, run.claim
    faults = tools.FAULT_TOOLS if settings.faults else ()
    own_names = set(persona.tools) - set(tools_of_server())
    names = [name for name in persona.tools if name not in own_names]
    builtin_tools = tools.load([*names, *tools.AUTOMATIC_TOOLS, *faults])
    own_tools = http_tools.tools_of(process.connections, claim.org_id, own_names)
    of_client = client_tools.tools_of(persona.client_tools)
    # The loop knows this name as built in, also where the persona has not the tool.
    reserved_names = {*builtin_tools, *own_names, *of_client, "ask_user", DELEGATE, FINAL_TOOL}
    mcp_tools = tools_of(
        process.connections,
        process.mcp,
        claim.org_id,
        persona.mcp,
        reserved_names=reserved_names,
        context=run,
    )
    pulled_tools, pulled_names = worker_tools.tools_of(
        process.worker_calls,
        run,
        process.catalog.worker_tools(claim.org_id, persona.tool_workers),
        reserved_names | mcp_tools.tools.keys(),
    )
    searchable: dict[str, ToolSpec] = {}
    if persona.mcp_tool_search:
        searchable = {name: tool.spec for name, tool in mcp_tools.tools.items()}
        search = builtin_tools[search_tools.NAME]
        builtin_tools[search_tools.NAME] = search_tools.naming(search, persona.mcp, len(searchable))
    # `require_approval` matches a tool by every name that the persona knows it by.
    required = persona.require_approval
    also_named = {**mcp_tools.also_named, **pulled_names}
    aliases = {name for name, meant in also_named.items() if meant & required}
    return Agent(
        identity=_identity(claim),
        persona=replace(persona, require_approval=required | aliases),
        chain=chain,
        tools={
            **builtin_tools,
            **delegating.tools_of(process, run, persona),
            **own_tools,
            **of_client,
            **mcp_tools.tools,
            **pulled_tools,
        },
        searchable=searchable,
        history=seen,
        position=claim.position,
        steered=list(run.steered),
        output=OutputSchema(persona.output_schema) if persona.output_schema else None,
        egress=Policy.of(settings.fetch_allowed_networks, FETCH_ALLOWED_NETWORKS),
        draining=process.draining,
    )


def _identity(claim: Claim) -> RunIdentity:
    return RunIdentity(
        run_id=str(claim.run_id),
        thread_id=str(claim.thread_id),
        org_id=str(claim.org_id),
        end_user_id=claim.end_user_id,
        metadata=claim.metadata,
        trace_id=claim.trace_id,
    )


def _continued(seen: History, run: ClaimedRun, earlier: ResumeState) -> History:
    """Add to the history what earlier attempts of the run have done to it."""
    contexts = dict(seen.contexts)
    for one in earlier.compacted:
        if contexts.get(one.window_tokens) != one:
            contexts[one.window_tokens] = one
            run.store_context(one)  # a crash came first
    counted = counted_of(run.claim.position, earlier.turns, run.claim.route_id)
    return replace(seen, contexts=contexts, counted=counted or seen.counted)


def _cost_of_lost(agent: Agent, run: ClaimedRun, earlier: ResumeState) -> tuple[Event, ...]:
    """Return the cost of the lost text, unless it is recorded: a deploy bills what it stops."""
    if earlier.is_counted:
        return ()
    if agent.chain.route.id != (earlier.route_id or run.claim.route_id):
        return (run.bill_lost_call(),)  # its route is in the chain no more
    text = event_log.output_of(earlier.lost)
    usage = loop.estimate_lost(agent, run, earlier.turns, text)
    return (run.bill_lost_call((agent.chain.route, usage)),)


def _resume(connections: Connections, run: ClaimedRun) -> ResumeState:
    """Load what earlier attempts have done."""
    run_id = run.claim.run_id
    with connections.reading() as sql:
        run.admission.totals = recorded_totals(sql, run_id)
        earlier = resume_state_from(history.own_events(sql, run_id))
        run.log.written_bytes += history.written_bytes(sql, run_id)
        run.reopen(earlier.lost)
        if earlier.turns and earlier.turns[-1].is_open:
            history.take_done_calls(sql, run_id, earlier.turns[-1])
    return earlier
