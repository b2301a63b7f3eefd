# SPDX-License-Identifier: Apache-2.0
"""What comes in from PyTorch: MODEL resolved, traced, its involutions recognised, imported as a Relax module."""
