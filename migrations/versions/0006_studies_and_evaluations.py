"""studies: grids of jobs; and what evaluations find, task by task

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('studies',
    sa.Column('id', sa.UUID(), server_default=sa.text('uuidv7()'), nullable=False),
    sa.Column('workspace_id', sa.UUID(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('base', postgresql.JSON(astext_type=sa.Text()), nullable=False),
    sa.Column('grid', postgresql.JSON(astext_type=sa.Text()), nullable=False),
    sa.Column('concurrency', sa.Integer(), nullable=False),
    sa.Column('state', sa.Text(), server_default='running', nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('ended_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("state IN ('running', 'cancelling', 'finished', 'cancelled')", name=op.f('ck_studies_state')),
    sa.CheckConstraint('concurrency >= 1', name=op.f('ck_studies_concurrency')),
    sa.ForeignKeyConstraint(['workspace_id'], ['workspaces.id'], name=op.f('fk_studies_workspace_id_workspaces')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_studies'))
    )
    op.create_index('ix_studies_workspace_id_id', 'studies', ['workspace_id', 'id'], unique=False)
    op.create_index('ix_studies_open', 'studies', ['id'], unique=False, postgresql_where=sa.text("state IN ('running', 'cancelling')"))
    op.create_table('evaluations',
    sa.Column('job_id', sa.UUID(), nullable=False),
    sa.Column('step', sa.Integer(), nullable=False),
    sa.Column('metric', sa.Text(), nullable=False),
    sa.Column('higher_is_better', sa.Boolean(), nullable=False),
    sa.Column('scores', postgresql.JSON(astext_type=sa.Text()), nullable=False),
    sa.Column('curve', postgresql.JSON(astext_type=sa.Text()), nullable=False),
    sa.Column('along_flow', postgresql.JSON(astext_type=sa.Text()), nullable=True),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('fk_evaluations_job_id_jobs'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('job_id', 'step', name=op.f('pk_evaluations'))
    )
    op.add_column('jobs', sa.Column('study_id', sa.UUID(), nullable=True))
    op.add_column('jobs', sa.Column('cell_number', sa.Integer(), nullable=True))
    op.add_column('jobs', sa.Column('cell', postgresql.JSON(astext_type=sa.Text()), nullable=True))
    op.add_column('jobs', sa.Column('held', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    op.create_foreign_key(op.f('fk_jobs_study_id_studies'), 'jobs', 'studies', ['study_id'], ['id'])
    op.create_check_constraint(op.f('ck_jobs_cell_of_a_study'), 'jobs', "(study_id IS NULL) = (cell IS NULL)")
    op.create_check_constraint(op.f('ck_jobs_held_by_a_study'), 'jobs', "study_id IS NOT NULL OR NOT held")
    op.create_index('uq_jobs_study_id_cell_number', 'jobs', ['study_id', 'cell_number'], unique=True, postgresql_where=sa.text("study_id IS NOT NULL"))
    op.drop_index('ix_jobs_queue', table_name='jobs')
    op.create_index('ix_jobs_queue', 'jobs', ['queued_at', 'id'], unique=False, postgresql_where=sa.text("state = 'queued' AND NOT held"))


def downgrade() -> None:
    op.drop_index('ix_jobs_queue', table_name='jobs')
    op.create_index('ix_jobs_queue', 'jobs', ['queued_at', 'id'], unique=False, postgresql_where=sa.text("state = 'queued'"))
    # Jobs of studies stay, as jobs of their own.
    op.drop_index('uq_jobs_study_id_cell_number', table_name='jobs')
    op.drop_constraint(op.f('ck_jobs_held_by_a_study'), 'jobs', type_='check')
    op.drop_constraint(op.f('ck_jobs_cell_of_a_study'), 'jobs', type_='check')
    op.drop_constraint(op.f('fk_jobs_study_id_studies'), 'jobs', type_='foreignkey')
    for column in ('held', 'cell', 'cell_number', 'study_id'):
        op.drop_column('jobs', column)
    op.drop_table('evaluations')
    op.drop_table('studies')
