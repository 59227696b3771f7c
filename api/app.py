"""Composition root of the web process; the Procfile has gunicorn call `create_app`."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask

from arkloop.api.auth import request_limits
from arkloop.api.auth.bearer import Authenticator
from arkloop.api.auth.password_attempts import PasswordAttempts
from arkloop.api.auth.provider_attempts import ProviderAttempts
from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.api.auth.request_limits import RequestLimits
from arkloop.api.console import pages as console
from arkloop.api.description import pages
from arkloop.api.endpoints import (
    agent_workers,
    api_keys,
    audit_logs,
    auth,
    budgets,
    catalog,
    client_tokens,
    events,
    explanations,
    files,
    following,
    health,
    identity_providers,
    invitations,
    llm_providers,
    mcp_configs,
    mcp_oauth,
    me,
    members,
    messages,
    new_runs,
    oidc,
    operator,
    password_resets,
    personas,
    prompts,
    runs,
    sessions,
    thread_events,
    threads,
    timeline,
    tool_results,
    tool_workers,
    tools,
    usage,
    webhook_endpoints,
)
from arkloop.api.http import allowed_hosts, cors, denials, errors, headers, observation
from arkloop.api.http.path_ids import IdConverter, ResponseConverter
from arkloop.api.http.reports import Reports
from arkloop.api.http.routing import MatchingRule
from arkloop.api.protocols import agui, ai_sdk, responses
from arkloop.api.streaming.long_polls import LongPollHub
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_slots import StreamSlots
from arkloop.api.streaming.thread_stream import ThreadRuns
from arkloop.shared import fault_points, logs, plugins
from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.personas import InvalidPersona
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.monitoring import exposition
from arkloop.shared.plugins import InvalidPlugin
from arkloop.shared.runs.creation import RunCreator
from arkloop.shared.security import egress
from arkloop.shared.storage import server_checks
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.notifications import NotificationSender

#: gunicorn's own status for "do not start me again".
BOOT_ERROR = 3

BLUEPRINTS = (
    agent_workers.bp,
    health.bp,
    pages.bp,
    console.bp,
    auth.bp,
    me.bp,
    api_keys.bp,
    client_tokens.bp,
    budgets.bp,
    usage.bp,
    audit_logs.bp,
    threads.bp,
    messages.bp,
    timeline.bp,
    thread_events.bp,
    files.bp,
    runs.bp,
    explanations.bp,
    prompts.bp,
    operator.bp,
    sessions.bp,
    new_runs.bp,
    events.bp,
    tool_results.bp,
    catalog.bp,
    llm_providers.bp,
    personas.bp,
    mcp_configs.bp,
    mcp_oauth.bp,
    tools.bp,
    tool_workers.bp,
    webhook_endpoints.bp,
    members.bp,
    invitations.bp,
    identity_providers.bp,
    oidc.bp,
    password_resets.bp,
    responses.bp,
    ai_sdk.bp,
    agui.bp,
)


class _PlainFlask(Flask):
    """A Flask without coroutines: it would ask of each function whether it is one, eight times a
    request.
    """

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(connections: Connections | None = None) -> Flask:
    """Make the WSGI application; call it in the process that serves, after any fork.

    Without `connections` they are made by the settings of the environment; if these are wrong,
    every problem is printed and the process exits with status 3, at which gunicorn gives up.
    """
    try:
        if connections is None:
            settings = Settings.from_env()
            fault_points.arm(settings)
            exposition.prepare(settings)
            logs.configure()
            connections = connect(settings, application="arkloop-web", send=NotificationSender())
            server_checks.check(connections)
        plugins.use(connections.settings.plugins)
        catalog_ = Catalog(connections, model_routes.load(connections.settings))
        storage = storage_of(connections.settings)
        storage.check()
    except (
        InvalidSettings,
        InvalidPersona,
        InvalidPlugin,
        server_checks.UnsuitableServer,
    ) as error:
        sys.stderr.write(f"{error}\n")
        # With another status its master would start the worker again and again.
        sys.exit(BOOT_ERROR)
    app = _PlainFlask(__name__, static_folder=None)
    app.extensions["arkloop"] = connections
    app.extensions["arkloop.auth"] = Authenticator(connections)
    app.extensions["arkloop.password_attempts"] = PasswordAttempts(connections)
    app.extensions["arkloop.provider_attempts"] = ProviderAttempts(connections)
    policy = egress.Policy.of(connections.settings.allowed_networks)
    app.extensions["arkloop.provider_documents"] = ProviderDocuments(policy)
    app.extensions["arkloop.request_limits"] = RequestLimits(connections)
    app.extensions["arkloop.storage"] = storage
    app.extensions["arkloop.hub"] = StreamHub(connections)
    app.extensions["arkloop.stream_slots"] = StreamSlots(connections)
    app.extensions["arkloop.thread_runs"] = ThreadRuns(connections, thread_events.announcement)
    app.extensions["arkloop.polls"] = polls = LongPollHub(connections)
    polls.looks.append(partial(tool_workers.waiting, connections))
    polls.looks.append(partial(agent_workers.look, connections))
    app.extensions["arkloop.worker_tools"] = tool_workers.KnownTools()
    app.extensions["arkloop.reports"] = Reports(connections)
    app.extensions["arkloop.catalog"] = catalog_
    app.extensions["arkloop.create_run"] = RunCreator(connections, catalog_)
    # Flask declares the provider by its base class, which has no such attribute.
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider
    app.url_rule_class = MatchingRule
    app.url_map.converters["id"] = IdConverter
    app.url_map.converters["response"] = ResponseConverter
    # One address for each thing: no redirects from its other spellings.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    errors.register(app)
    denials.register(app, connections)
    headers.register(app)
    cors.register(app)
    allowed_hosts.register(app)
    request_limits.register(app)
    observation.register(app, connections.settings)
    app.teardown_request(following.free_unused_slot)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    return app
