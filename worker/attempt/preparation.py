"""The preparation of an attempt: persona, routes, tools, and what earlier attempts have done."""

import logging
import time
from dataclasses import replace

from arkloop.shared.billing import budgets
from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona, tools_of_server
from arkloop.shared.claim import Claim
from arkloop.shared.errors import PersonaNotFound
from arkloop.shared.events import event_log
from arkloop.shared.events.types import DELEGATE, ContextCompacted, Event, RunFallback
from arkloop.shared.runs import overrides, pending_calls, sent_prompts
from arkloop.shared.runs.transitions import recorded_totals
from arkloop.shared.security.egress import FETCH_ALLOWED_NETWORKS, Policy
from arkloop.shared.storage.connections import Connections
from arkloop.worker import providers, tools
from arkloop.worker.agent import client_tools, loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import History, ResumeState, counted_of, resume_state_from
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.attempt import delegating, worker_tools
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.identity import RunIdentity
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import ProviderError, RunFailure
from arkloop.worker.http_tools import tools as http_tools
from arkloop.worker.mcp.tools import tools_of
from arkloop.worker.process import history
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.providers import Provider, context_sizes
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.tools import search_tools

log = logging.getLogger(__name__)

#: What the events say broke a route that the run was to go on with: it is gone, or a budget that
#: is newer than the fallback to it cannot pay it.
ROUTE_GONE, ROUTE_UNPRICED = "provider.invalid_request", "budget.exhausted"


def persona_of(process: WorkerProcess, claim: Claim) -> Persona:
    """Load the persona, with the run's overrides.

    Raises:
        RunFailure: this worker cannot, though the API could.
    """
    try:
        persona = process.catalog.persona(claim.org_id, claim.persona_id)
        return overrides.apply(persona, claim.options)
    except PersonaNotFound as error:
        log.error("%s", error.details["persona_id"][0])
        message = (
            f"This worker does not have persona {claim.persona_id!r}, or its release does not"
            " support it, which a deploy can cause; see the worker logs."
        )
        raise RunFailure("worker.crashed", message, retryable=True) from error


def chain_of(
    process: WorkerProcess, run: ClaimedRun, persona: Persona, earlier: ResumeState
) -> tuple[RouteChain, RunFallback | None]:
    """Build the route chain, without fallback routes that a budget cannot pay.

    With it comes the event of a run that leaves the route that was in use (None: it does not).

    Raises:
        RunFailure: this worker does not have the run's route.
        StopRun: the run has to stop while a server is asked for the context of its model.
    """
    settings, claim = process.settings, run.claim
    routes = process.catalog.chain(claim.org_id, persona, claim.route_id)
    if not routes:
        raise _route_missing(claim.route_id)
    # A route that broke in an earlier attempt is not tried again.
    routes = next((routes[i:] for i, r in enumerate(routes) if r.id == earlier.route_id), routes)
    in_use = earlier.route_id or claim.route_id
    reason = ROUTE_UNPRICED if routes[0].id == in_use else ROUTE_GONE
    own = claim.route_id
    if run.admission.is_limited and any(r.prices is None and r.id != own for r in routes):
        with process.connections.reading() as sql:
            limits = budgets.limits(sql, claim, persona)
        routes = [r for r in routes if r.id == own or limits.can_pay(r)] or routes[:1]
    first = routes[0]
    left = RunFallback(in_use, first.id, first.model, reason) if first.id != in_use else None

    def egress(route: Route) -> Policy | None:
        return Policy.of(settings.allowed_networks) if route.is_of_org else None

    def connect(route: Route) -> Provider:
        return providers.load(route, faults=settings.faults, egress=egress(route))

    def ask(route: Route) -> int | None:
        return context_sizes.ask(route, egress(route), run)

    # The run's time passes meanwhile: of several silent servers each run asks one more.
    sizes, until = process.context_sizes, time.monotonic() + context_sizes.SECONDS
    sized = [sizes.complete(r, ask if time.monotonic() < until else None) for r in routes]
    return RouteChain(sized, connect, earlier.dropped_settings, sizes.learner(routes)), left


def _route_missing(route_id: str) -> RunFailure:
    """Build the error of a run none of whose routes exist here.

    A route of an org is in the database, for all processes. One of the server is in the settings,
    which web processes and other workers may have newer or older ones of during a deploy.
    """
    if model_routes.is_of_org(route_id):
        return ProviderError("invalid_request", f"Route {route_id!r} no longer exists.")
    message = (
        f"This worker does not have the server's route {route_id!r}: it was removed, or web and"
        " worker processes have different settings, which a deploy can cause."
    )
    return RunFailure("provider.invalid_request", message, retryable=True)


def agent_of(
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
        identity=identity_of(claim),
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
        steered=[*run.steered],
        output=OutputSchema(persona.output_schema) if persona.output_schema else None,
        egress=Policy.of(settings.fetch_allowed_networks, FETCH_ALLOWED_NETWORKS),
        draining=process.draining,
    )


def identity_of(claim: Claim) -> RunIdentity:
    return RunIdentity(
        run_id=str(claim.run_id),
        thread_id=str(claim.thread_id),
        org_id=str(claim.org_id),
        end_user_id=claim.end_user_id,
        metadata=claim.metadata,
        trace_id=claim.trace_id,
    )


def continued(seen: History, run: ClaimedRun, earlier: ResumeState) -> History:
    """Add to the history what earlier attempts of the run have done to it."""
    contexts = dict(seen.contexts)
    for one in earlier.compacted:
        if one == ContextCompacted(window_tokens=one.window_tokens):
            continue  # an erasure has made it void: what the thread has applies
        if contexts.get(one.window_tokens) != one:
            contexts[one.window_tokens] = one
            run.store_context(one)  # a crash came first
    own_route = run.claim.route_id, run.claim.model
    counted = counted_of(run.claim.position, earlier.turns, own_route)
    if counted is None and not earlier.compacted:
        counted = seen.counted
    return replace(seen, contexts=contexts, counted=counted)


def cost_of_lost(agent: Agent, run: ClaimedRun, earlier: ResumeState) -> tuple[Event, ...]:
    """Return the cost of the lost text, unless it is recorded: a deploy bills what it stops."""
    if earlier.is_counted:
        return ()
    if agent.chain.route.id != (earlier.route_id or run.claim.route_id):
        return (run.bill_lost_call(),)  # its route is in the chain no more
    text = event_log.output_of(earlier.lost)
    usage = loop.estimate_lost(agent, run, earlier.turns, text)
    return (run.bill_lost_call((agent.chain.route, usage)),)


def resume(connections: Connections, run: ClaimedRun) -> ResumeState:
    """Load what earlier attempts have done."""
    run_id = run.claim.run_id
    with connections.reading() as sql:
        run.admission.totals = recorded_totals(sql, run_id)
        earlier = resume_state_from(history.own_events(sql, run_id))
        run.log.written_bytes += history.written_bytes(sql, run_id)
        run.count_prompts(sent_prompts.stored_bytes(sql, run_id))
        run.reopen(earlier.lost)
        if earlier.turns and (turn := earlier.turns[-1]).is_open:
            history.take_done_calls(sql, run_id, turn)
            open_calls = [call.id for call in turn.calls if call.id not in turn.results]
            turn.early_results = pending_calls.early(sql, run_id, open_calls)
    return earlier
