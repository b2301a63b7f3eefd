# SPDX-License-Identifier: Apache-2.0
"""The steps: in each file one function of the file's name, `step(settings, results)`."""
