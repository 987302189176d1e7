"""Alembic's entry: runs the revisions against AMAML_DATABASE_URL, one migration at a time."""

from __future__ import annotations

from logging.config import fileConfig

from alembic import context
from sqlalchemy import text

from service.core.database import engine, url_from_environment
from service.tables import METADATA

# An advisory lock, so that two stacks that start at the same time on one database don't both create the tables.
MIGRATION_LOCK = 7_227_034_019


def run_offline() -> None:
    context.configure(
        url=url_from_environment(),
        target_metadata=METADATA,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    with engine().connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.commit()
        context.configure(connection=connection, target_metadata=METADATA, compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.commit()


if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    run_offline()
else:
    run_online()
