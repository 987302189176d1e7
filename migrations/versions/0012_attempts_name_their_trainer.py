"""attempts name the process that runs them

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op
revision = '0012'
down_revision = '0011'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('attempts', sa.Column('trainer_pid', sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column('attempts', 'trainer_pid')
