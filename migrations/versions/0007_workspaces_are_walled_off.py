"""the API's role sees the rows of one workspace alone

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op
from migrations.row_security import ROLE, confine, confine_children, release
revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None

BY_WORKSPACE = ('api_keys', 'blobs', 'datasets', 'idempotency_keys', 'jobs', 'studies', 'webhook_deliveries', 'webhooks')
BY_JOB = ('attempts', 'checkpoints', 'evaluations', 'events', 'metrics')

# The role belongs to the whole server, not to this database: it may be there, or be made by another at this moment.
MAKE_ROLE = f"""
DO $role$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        BEGIN
            CREATE ROLE {ROLE} NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT pg_has_role(current_user, '{ROLE}', 'SET') THEN
        EXECUTE format('GRANT {ROLE} TO %I WITH SET TRUE, INHERIT FALSE', current_user);
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE insufficient_privilege USING
        MESSAGE = format('the login %s may neither make the role {ROLE} nor act in it', current_user),
        HINT = format('Have an administrator of the server run: CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO %I WITH SET TRUE, '
                      'INHERIT FALSE; (the first only where the role is missing), then migrate again.', current_user);
END
$role$
"""


def upgrade() -> None:
    op.execute(MAKE_ROLE)
    # A blob has a workspace of its own now: that of what refers to it. What nothing refers to is swept away in time.
    op.add_column('blobs', sa.Column('workspace_id', sa.UUID(), nullable=True))
    op.execute("UPDATE blobs SET workspace_id = datasets.workspace_id FROM datasets WHERE datasets.blob_id = blobs.id")
    op.execute("UPDATE blobs SET workspace_id = jobs.workspace_id FROM jobs WHERE jobs.initialization_blob_id = blobs.id")
    op.execute(
        "UPDATE blobs SET workspace_id = jobs.workspace_id FROM checkpoints JOIN jobs ON jobs.id = checkpoints.job_id "
        "WHERE checkpoints.blob_id = blobs.id"
    )
    op.create_foreign_key(op.f('fk_blobs_workspace_id_workspaces'), 'blobs', 'workspaces', ['workspace_id'], ['id'])
    op.create_index('ix_blobs_workspace_id', 'blobs', ['workspace_id'], unique=False, postgresql_include=['size_bytes'])

    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}")
    op.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
    # Tables of later revisions too: what keeps workspaces apart are the policies, and a test asks for them.
    op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {ROLE}")
    op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO {ROLE}")
    # What belongs to the installation is read at most; the outbox is written to, and not read.
    op.execute(f"REVOKE ALL ON alembic_version, leaderships, outbox, workers, workspaces FROM {ROLE}")
    op.execute(f"GRANT SELECT ON alembic_version, workers, workspaces TO {ROLE}")
    # To lock a workspace's row takes the right to change some column of it: this one matters least.
    op.execute(f"GRANT UPDATE (created_at) ON workspaces TO {ROLE}")
    op.execute(f"GRANT INSERT, SELECT (id) ON outbox TO {ROLE}")
    confine('workspaces', 'id')
    for table in BY_WORKSPACE:
        confine(table)
    for table in BY_JOB:
        confine_children(table, 'job_id', 'jobs')
    confine_children('blob_chunks', 'blob_id', 'blobs')
    confine_children('webhook_attempts', 'delivery_id', 'webhook_deliveries')


def downgrade() -> None:
    for table in ('webhook_attempts', 'blob_chunks', *BY_JOB, *BY_WORKSPACE, 'workspaces'):
        release(table)
    op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM {ROLE}")
    op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON SEQUENCES FROM {ROLE}")
    op.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {ROLE}")
    op.execute(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {ROLE}")
    op.drop_index('ix_blobs_workspace_id', table_name='blobs')
    op.drop_constraint(op.f('fk_blobs_workspace_id_workspaces'), 'blobs', type_='foreignkey')
    op.drop_column('blobs', 'workspace_id')
    # The role stays: another database of this server may use it.
