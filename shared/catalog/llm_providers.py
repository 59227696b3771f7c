"""An org's providers and their models.

A provider's API key is sealed at once, and nothing here opens it: `org_routes.py` does.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.actors import Actor
from arkloop.shared.catalog import platforms
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.errors import InvalidRequest, ModelNotFound, NameTaken, ProviderNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.security import egress
from arkloop.shared.security.encryption import NoEncryptionKey, keyring
from arkloop.shared.storage import org_locks
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.pages import Place, after, newest
from arkloop.shared.storage.tables.catalog import llm_models, llm_providers

KINDS = ("anthropic", "openai")
#: Of an org; the catalogue reads all its models at once.
MAX_PROVIDERS = 100
MAX_MODELS = 500
#: With a shorter key its last characters would tell too much of it.
_MIN_SHOWN_KEY = 12
#: One of them is sealed.
_SECRETS = ("api_key", "credentials")
#: What the keys are sealed for.
API_KEY_PURPOSE = "llm_providers.api_key"

#: Of `llm_models`.
PRICE_COLUMNS = {name: f"{name}_price" for name in ("input", "output", "cache_read", "cache_write")}


# ---- providers -----------------------------------------------------------------------


def create(
    tx: Transaction,
    actor: Actor,
    *,
    name: str,
    kind: str,
    base_url: str | None = None,
    api_key: str | None = None,
    credentials: Mapping[str, Any] | None = None,
    models: Iterable[Mapping[str, Any]] = (),
    **platform: str | None,
) -> Row[Any]:
    """Make a provider with its models; `platform` may have the options of `platforms.py`.

    Raises:
        NameTaken: the org has one of this name, or a model is named twice.
        InvalidRequest: `base_url` may not be asked, the platform lacks an option, the org has too
            many, or this server cannot store a key.

    Details about a model begin with its place, `models.0`.
    """
    org_locks.lock(tx, actor.org_id)
    count = tx.sql.execute(
        select(func.count()).where(llm_providers.c.org_id == actor.org_id)
    ).scalar_one()
    if count >= MAX_PROVIDERS:
        raise InvalidRequest(body=[f"limit reached: {MAX_PROVIDERS} providers per organization"])
    _check_platform({"kind": kind, "base_url": base_url, **platform})
    secret = _secret(platform.get("platform"), api_key, credentials)
    row = tx.sql.execute(
        upsert(llm_providers)
        .values(
            id=new_id(),
            org_id=actor.org_id,
            name=name,
            kind=kind,
            base_url=_checked(tx, base_url),
            **platform,
            **_sealed(tx, actor, secret),
        )
        .on_conflict_do_nothing(index_elements=["org_id", "name"])
        .returning(*llm_providers.c)
    ).one_or_none()
    if row is None:
        raise NameTaken(name=["is already the name of another provider"])
    for place, model in enumerate(models):
        try:
            _create_model(tx, row, **model)
        except (NameTaken, InvalidRequest) as error:
            raise type(error)(
                **{  # the limit of the org is not about one of the models
                    name if name == "body" else f"models.{place}.{name}": why
                    for name, why in error.details.items()
                }
            ) from None
    return row


def kinds(sql: Connection) -> list[str]:
    """Return the kinds of the providers of all orgs."""
    return list(sql.scalars(select(llm_providers.c.kind).distinct()))


def list_(sql: Connection, actor: Actor, *, limit: int, before: Place | None) -> list[Row[Any]]:
    """List the org's providers, newest first."""
    query = select(llm_providers).where(llm_providers.c.org_id == actor.org_id)
    page = newest(query, llm_providers, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


def get(sql: Connection, actor: Actor, provider_id: UUID) -> Row[Any]:
    """Return a provider. Raises: ProviderNotFound: the org has none of this id."""
    row = sql.execute(select(llm_providers).where(_is(actor, provider_id))).one_or_none()
    if row is None:
        raise ProviderNotFound()
    return row


def change(tx: Transaction, actor: Actor, provider_id: UUID, **changes: Any) -> Row[Any]:
    """Set what is given of `create`'s fields; a null key is none, and so are null credentials.

    A stored key goes only where it was given for: with another kind, platform or address it is
    given again.

    Raises:
        ProviderNotFound
        NameTaken: another of the org has the name.
        InvalidRequest: as `create`, a key that is not given again, another `kind` than openai
            while a model has an `api`.
    """
    org_locks.lock(tx, actor.org_id)
    before = get(tx.sql, actor, provider_id)
    values = {name: value for name, value in changes.items() if name not in _SECRETS}
    of_route = ("kind", "base_url", "platform", *platforms.OPTIONS)
    _check_platform({name: values.get(name, getattr(before, name)) for name in of_route})
    if "base_url" in values:
        values["base_url"] = _checked(tx, values["base_url"])
    if values.get("kind", before.kind) != before.kind:
        _check_no_api(tx, provider_id)
    moved = any(
        values.get(name, getattr(before, name)) != getattr(before, name)
        for name in ("kind", "base_url", "platform", "region")
    )
    is_resent = any(name in changes for name in _SECRETS)
    if moved and before.api_key_encrypted is not None and not is_resent:
        where = "`kind`, `base_url`, `platform` or `region`"
        raise InvalidRequest(api_key=[f"must be resent when {where} changes"])
    if is_resent:
        platform = values.get("platform", before.platform)
        secret = _secret(platform, *(changes.get(name) for name in _SECRETS))
        values |= _sealed(tx, actor, secret)
    if "name" in values and tx.sql.scalar(
        select(llm_providers.c.id).where(
            llm_providers.c.org_id == actor.org_id,
            llm_providers.c.name == values["name"],
            llm_providers.c.id != provider_id,
        )
    ):
        raise NameTaken(name=["is already the name of another provider"])
    return tx.sql.execute(
        update(llm_providers)
        .where(_is(actor, provider_id))
        .values(**values, updated_at=func.now())
        .returning(*llm_providers.c)
    ).one()


def delete_(tx: Transaction, actor: Actor, provider_id: UUID) -> None:
    """Delete it with its models; runs that use one fail when a worker next takes them.

    Raises:
        ProviderNotFound
    """
    org_locks.lock(tx, actor.org_id)
    found = tx.sql.execute(delete(llm_providers).where(_is(actor, provider_id)))
    if not found.rowcount:
        raise ProviderNotFound()


# ---- models --------------------------------------------------------------------------


def create_model(tx: Transaction, actor: Actor, provider_id: UUID, **fields: Any) -> Row[Any]:
    """Add a model to a provider; as the default it takes the place of the one before.

    `fields` are columns of `llm_models` and `prices`.

    Raises:
        ProviderNotFound
        NameTaken: the provider has this model.
        InvalidRequest: the org has too many; `api` is for providers of kind openai alone.
    """
    org_locks.lock(tx, actor.org_id)
    return _create_model(tx, get(tx.sql, actor, provider_id), **fields)


def list_models(
    sql: Connection, actor: Actor, provider_id: UUID, *, limit: int, before: Place | None
) -> list[Row[Any]]:
    """List the provider's models, newest first. Raises: ProviderNotFound."""
    get(sql, actor, provider_id)
    query = select(llm_models).where(llm_models.c.provider_id == provider_id)
    page = newest(query, llm_models, limit=limit, is_deep=before is not None)
    return list(sql.execute(page, after(before)))


def models_of(sql: Connection, provider_ids: Iterable[UUID]) -> list[Row[Any]]:
    """Return the models of these providers, oldest first."""
    return list(
        sql.execute(
            select(llm_models)
            .where(llm_models.c.provider_id.in_(list(provider_ids)))
            .order_by(llm_models.c.created_at, llm_models.c.id)
        )
    )


def get_model(sql: Connection, actor: Actor, provider_id: UUID, model_id: UUID) -> Row[Any]:
    """Return a model. Raises: ProviderNotFound; ModelNotFound: the provider has none of this id."""
    get(sql, actor, provider_id)
    row = sql.execute(
        select(llm_models).where(
            llm_models.c.id == model_id, llm_models.c.provider_id == provider_id
        )
    ).one_or_none()
    if row is None:
        raise ModelNotFound()
    return row


def change_model(
    tx: Transaction, actor: Actor, provider_id: UUID, model_id: UUID, **changes: Any
) -> Row[Any]:
    """Set what is given; `prices` are set all four together.

    Raises:
        ProviderNotFound, ModelNotFound
        NameTaken: the provider has another of this model.
        InvalidRequest: `api` is for providers of kind openai alone.
    """
    org_locks.lock(tx, actor.org_id)
    get_model(tx.sql, actor, provider_id, model_id)
    _check_api(get(tx.sql, actor, provider_id), changes)
    if "model" in changes and tx.sql.scalar(
        select(llm_models.c.id).where(
            llm_models.c.provider_id == provider_id,
            llm_models.c.model == changes["model"],
            llm_models.c.id != model_id,
        )
    ):
        raise NameTaken(model=["is already a model of this provider"])
    if changes.get("is_default"):
        _clear_default(tx, actor.org_id)
    return tx.sql.execute(
        update(llm_models)
        .where(llm_models.c.id == model_id)
        .values(**_columns(changes), updated_at=func.now())
        .returning(*llm_models.c)
    ).one()


def delete_model(tx: Transaction, actor: Actor, provider_id: UUID, model_id: UUID) -> None:
    """Delete it; runs that use it fail when a worker next takes them.

    Raises:
        ProviderNotFound, ModelNotFound
    """
    org_locks.lock(tx, actor.org_id)
    get_model(tx.sql, actor, provider_id, model_id)
    tx.sql.execute(delete(llm_models).where(llm_models.c.id == model_id))


# ---- pieces --------------------------------------------------------------------------


def _is(actor: Actor, provider_id: UUID) -> Any:
    return (llm_providers.c.id == provider_id) & (llm_providers.c.org_id == actor.org_id)


def _checked(tx: Transaction, base_url: str | None) -> str | None:
    """Normalize the address. The addresses of its name are checked at each call."""
    if base_url is None:
        return None
    policy = egress.Policy.of(tx.connections.settings.allowed_networks)
    try:
        # Twice: what is stored is longer where it is encoded, and must pass later, too.
        checked = egress.check_url(egress.check_url(base_url, policy).text, policy)
    except egress.Refused as error:
        raise InvalidRequest(base_url=[str(error)]) from None
    if "?" in base_url or "#" in base_url:
        raise InvalidRequest(base_url=["must not have a query or a fragment"])
    return checked.text


def _check_platform(fields: Mapping[str, str | None]) -> None:
    options = {name: fields.get(name) for name in ("base_url", *platforms.OPTIONS)}
    if problems := platforms.problems(fields["kind"] or "", fields.get("platform"), options):
        raise InvalidRequest(**{name: [why] for name, why in problems.items()})


def _secret(
    platform: str | None, api_key: str | None, credentials: Mapping[str, Any] | None
) -> str | None:
    """Return the text to be sealed. Raises: InvalidRequest: the platform cannot use it."""
    name = "api_key" if credentials is None else "credentials"
    try:
        if credentials is not None:
            return platforms.sealed_text(platform, credentials)
        if api_key is not None and platform is not None:
            platforms.check_secret(platform, api_key)
    except ValueError as error:
        raise InvalidRequest(**{name: [str(error)]}) from None
    return api_key


def _sealed(tx: Transaction, actor: Actor, api_key: str | None) -> dict[str, Any]:
    if api_key is None:
        return {"api_key_encrypted": None, "api_key_last_four": None}
    try:
        keys = keyring(tx.connections.settings.encryption_key)
        sealed = org_keys.seal(tx, keys, api_key, org_id=actor.org_id, purpose=API_KEY_PURPOSE)
    except NoEncryptionKey as error:
        raise InvalidRequest(api_key=[str(error)]) from None
    is_shown = len(api_key) >= _MIN_SHOWN_KEY and not platforms.credentials_of(api_key)
    shown = api_key[-4:] if is_shown else None
    return {"api_key_encrypted": sealed, "api_key_last_four": shown}


def _create_model(tx: Transaction, provider: Row[Any], **fields: Any) -> Row[Any]:
    count = tx.sql.execute(
        select(func.count()).where(llm_models.c.org_id == provider.org_id)
    ).scalar_one()
    if count >= MAX_MODELS:
        raise InvalidRequest(body=[f"limit reached: {MAX_MODELS} models per organization"])
    _check_api(provider, fields)
    if fields.get("is_default"):
        _clear_default(tx, provider.org_id)
    row = tx.sql.execute(
        upsert(llm_models)
        .values(id=new_id(), org_id=provider.org_id, provider_id=provider.id, **_columns(fields))
        .on_conflict_do_nothing(index_elements=["provider_id", "model"])
        .returning(*llm_models.c)
    ).one_or_none()
    if row is None:
        raise NameTaken(model=["is already a model of this provider"])
    return row


def _check_api(provider: Row[Any], fields: Mapping[str, Any]) -> None:
    if fields.get("api") is not None and provider.kind != "openai":
        raise InvalidRequest(api=["is only supported for providers of kind openai"])


def _check_no_api(tx: Transaction, provider_id: UUID) -> None:
    with_api = select(llm_models.c.id).where(
        llm_models.c.provider_id == provider_id, llm_models.c.api.is_not(None)
    )
    if tx.sql.scalar(with_api.limit(1)) is not None:
        raise InvalidRequest(
            kind=["a model of this provider sets `api`, which is only supported for kind openai"]
        )


def _clear_default(tx: Transaction, org_id: UUID) -> None:
    tx.sql.execute(
        update(llm_models)
        .where(llm_models.c.org_id == org_id, llm_models.c.is_default)
        .values(is_default=False, updated_at=func.now())
    )


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: value for name, value in fields.items() if name != "prices"}
    if "prices" in fields:
        given: Prices | None = fields["prices"]
        columns |= {
            column: given and getattr(given, name) for name, column in PRICE_COLUMNS.items()
        }
    return columns
