"""workspaces have quotas

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from migrations.row_security import ROLE, confine
from sqlalchemy.dialects import postgresql
revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('workspaces', sa.Column('quotas', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False))
    op.add_column('jobs', sa.Column('estimated_seconds', sa.Double(), nullable=True))
    op.create_index(
        'ix_jobs_unfinished', 'jobs', ['workspace_id'], unique=False, postgresql_include=['state', 'estimated_seconds'],
        postgresql_where=sa.text("state NOT IN ('succeeded', 'failed', 'cancelled')"),
    )
    op.create_table('compute_use',
    sa.Column('workspace_id', sa.UUID(), nullable=False),
    sa.Column('hour', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('seconds', sa.Double(), nullable=False),
    sa.ForeignKeyConstraint(['workspace_id'], ['workspaces.id'], name=op.f('fk_compute_use_workspace_id_workspaces')),
    sa.PrimaryKeyConstraint('workspace_id', 'hour', name=op.f('pk_compute_use'))
    )
    confine('compute_use')
    op.execute(f"REVOKE INSERT, UPDATE, DELETE ON compute_use FROM {ROLE}")
    # What was spent before counts too.
    op.execute(
        "INSERT INTO compute_use SELECT jobs.workspace_id, date_trunc('hour', attempts.ended_at), "
        "sum(extract(epoch FROM least(attempts.ended_at - attempts.started_at, interval '24 hours'))) FROM attempts "
        "JOIN jobs ON jobs.id = attempts.job_id WHERE attempts.ended_at > now() - interval '24 hours' GROUP BY 1, 2"
    )


def downgrade() -> None:
    op.drop_table('compute_use')
    op.drop_index('ix_jobs_unfinished', table_name='jobs')
    op.drop_column('jobs', 'estimated_seconds')
    op.drop_column('workspaces', 'quotas')
