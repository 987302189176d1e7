"""data sets are checked by a worker, and have versions and a report

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('datasets', sa.Column('version', sa.Integer(), server_default='1', nullable=False))
    op.add_column('datasets', sa.Column('families', postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column('datasets', sa.Column('status_detail', sa.Text(), nullable=True))
    op.add_column('datasets', sa.Column('report', postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column('datasets', sa.Column('attempt', sa.Integer(), server_default='0', nullable=False))
    op.add_column('datasets', sa.Column('lease_expires_at', postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column('datasets', sa.Column('checked_at', postgresql.TIMESTAMP(timezone=True), nullable=True))
    # All that were there are ratings, checked when they came.
    op.execute("""UPDATE datasets SET families = '["ratings"]', checked_at = created_at""")
    op.execute(
        "UPDATE datasets SET version = numbered.version FROM (SELECT id, row_number() OVER (PARTITION BY workspace_id, name "
        "ORDER BY id) AS version FROM datasets WHERE name <> '') AS numbered WHERE datasets.id = numbered.id"
    )
    op.alter_column('datasets', 'families', nullable=False)
    op.alter_column('datasets', 'rows', nullable=True)
    op.alter_column('datasets', 'tasks', nullable=True)
    op.alter_column('datasets', 'state', server_default='pending')
    op.create_check_constraint(op.f('ck_datasets_state'), 'datasets', "state IN ('pending', 'ready', 'invalid')")
    op.create_index('uq_datasets_workspace_id_name_version', 'datasets', ['workspace_id', 'name', 'version'], unique=True, postgresql_where=sa.text("name <> ''"))
    op.create_index('ix_datasets_pending', 'datasets', ['id'], unique=False, postgresql_where=sa.text("state = 'pending'"))


def downgrade() -> None:
    op.drop_index('ix_datasets_pending', table_name='datasets')
    op.drop_index('uq_datasets_workspace_id_name_version', table_name='datasets')
    op.drop_constraint(op.f('ck_datasets_state'), 'datasets', type_='check')
    # What wasn't found good, or isn't ratings, has no place in the earlier schema, which would take it for ratings found good;
    # jobs that named it keep its id in their spec.
    op.execute("""DELETE FROM datasets WHERE state <> 'ready' OR NOT families @> '["ratings"]'""")
    op.execute("UPDATE datasets SET rows = coalesce(rows, 0), tasks = coalesce(tasks, 0)")
    op.alter_column('datasets', 'state', server_default=None)
    op.alter_column('datasets', 'rows', nullable=False)
    op.alter_column('datasets', 'tasks', nullable=False)
    for column in ('checked_at', 'lease_expires_at', 'attempt', 'report', 'status_detail', 'families', 'version'):
        op.drop_column('datasets', column)
