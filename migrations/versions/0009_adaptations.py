"""learned initializations are adapted to a task's rows

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from migrations.row_security import confine
from sqlalchemy.dialects import postgresql
revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('adaptations',
    sa.Column('id', sa.UUID(), server_default=sa.text('uuidv7()'), nullable=False),
    sa.Column('workspace_id', sa.UUID(), nullable=False),
    sa.Column('job_id', sa.UUID(), nullable=False),
    sa.Column('by', sa.Text(), nullable=False),
    sa.Column('request', postgresql.JSON(astext_type=sa.Text()), nullable=False),
    sa.Column('state', sa.Text(), server_default='queued', nullable=False),
    sa.Column('status_reason', sa.Text(), nullable=True),
    sa.Column('status_detail', sa.Text(), nullable=True),
    sa.Column('result', postgresql.JSON(astext_type=sa.Text()), nullable=True),
    sa.Column('weights_blob_id', sa.UUID(), nullable=True),
    sa.Column('attempt', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lease_expires_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('started_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('ended_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name=op.f('ck_adaptations_lease_while_it_runs')),
    sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed')", name=op.f('ck_adaptations_state')),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('fk_adaptations_job_id_jobs'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['weights_blob_id'], ['blobs.id'], name=op.f('fk_adaptations_weights_blob_id_blobs')),
    sa.ForeignKeyConstraint(['workspace_id'], ['workspaces.id'], name=op.f('fk_adaptations_workspace_id_workspaces')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_adaptations'))
    )
    op.create_index('ix_adaptations_job_id_id', 'adaptations', ['job_id', 'id'], unique=False)
    op.create_index('ix_adaptations_waiting', 'adaptations', ['id'], unique=False, postgresql_where=sa.text("state IN ('queued', 'running')"))
    confine('adaptations')


def downgrade() -> None:
    op.drop_table('adaptations')
