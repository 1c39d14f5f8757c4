# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Every target sets up what it needs, in a virtual environment of its own, and only once: ROS 2 comes from pip, unless
# a ROS 2 distribution is sourced. Building for a robot is colcon's work; nothing here is needed for that.

PYTHON ?= python3
DEMO_OUT ?= demo_out
DEMO_ARGS ?=
PYTEST_ARGS ?=
# The release that the models were trained with.
TORCH ?= torch==2.13.0 torchvision==0.28.0

comma := ,
supported := 3.10 3.11 3.12 3.13
python_version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(ROS_DISTRO),)
sourced := $(shell $(PYTHON) -c 'import rclpy' 2>/dev/null && echo $(ROS_DISTRO))
endif

ifneq ($(sourced),)
# The distribution's packages, and the system's numpy and OpenCV, which its cv_bridge is built against.
venv := .venv-$(sourced)
venv_options := --system-site-packages
extras := distribution,demo
test_extras := $(extras)
packages = $(shell $(PYTHON) -c 'import cv2' 2>/dev/null || echo 'opencv-python-headless>=4.5,<5')
# A distribution's pytest plugins do not go with every pytest.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1
else
venv := .venv
extras := pip,ros,demo
test_extras := $(extras),test
# Leftovers of another ROS 2, sourced or of other wheels, would be loaded instead of this one.
unexport ROS_DISTRO AMENT_PREFIX_PATH RMW_IMPLEMENTATION _ROS_WHEELS_BOOTSTRAP_COMPLETE
ifneq ($(ROS_DISTRO)$(_ROS_WHEELS_BOOTSTRAP_COMPLETE),)
unexport PYTHONPATH LD_LIBRARY_PATH
endif
endif

# ROS traffic stays on this machine. Fast DDS 2 and 3 each want a profile of their own (see ee_seg_ros/environment.py).
unexport ROS_LOCALHOST_ONLY FASTDDS_DEFAULT_PROFILES_FILE FASTRTPS_DEFAULT_PROFILES_FILE
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
ifeq ($(sourced),humble)
export ROS_LOCALHOST_ONLY := 1
endif
ifneq ($(filter humble iron jazzy,$(sourced)),)
export FASTRTPS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastrtps.xml
else
export FASTDDS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastdds.xml
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

python := $(venv)/bin/python
# Stamps: set-up is done again only if the interpreter or the package's requirements change.
created := $(venv)/.created-$(python_version)
requirements := $(created) setup.py pyproject.toml

# $(call install,EXTRAS,PACKAGES): this package from its source tree, so that edits count, and what EXTRAS need.
define install
@echo 'ee_seg_ros: installing $(1)$(if $(sourced), beside ROS 2 $(sourced)) into $(venv)'
@$(python) -m pip install -qq -c $(venv)/constraints.txt -e '.[$(1)]' $(foreach package,$(2),'$(package)') || { \
	echo 'ee_seg_ros: pip could not install what is needed, see above. It has to reach its package index; and ROS 2 comes'; \
	echo 'as wheels for Linux on x86-64 only: elsewhere, source a ROS 2 distribution first.'; exit 1; } >&2
@touch $@
endef

.PHONY: help demo test train-env lint clean

help:
	@echo 'make demo       run the pair of nodes on drawn street scenes; results in $(DEMO_OUT)'
	@echo 'make test       run the tests'
	@echo 'make train-env  install torch, for training and for the tests that need it'
	@echo 'make lint       check the style with ruff, the types with mypy'
	@echo 'make clean      remove all that make, pip and colcon made here'
	@echo 'Variables: PYTHON=python3.12 DEMO_ARGS="--frames 50" DEMO_OUT=DIR PYTEST_ARGS="-k engine"'

demo: $(venv)/.demo
	@$(venv)/bin/ee_seg demo --out '$(DEMO_OUT)' $(DEMO_ARGS)

test: $(venv)/.test
	@$(python) -m pytest $(PYTEST_ARGS)

train-env: $(venv)/.train

lint: $(venv)/.lint
	@$(python) -m ruff check .
	@$(python) -m mypy

clean:
	rm -rf .venv .venv-* build install log dist *.egg-info .pytest_cache .ruff_cache .mypy_cache '$(DEMO_OUT)'
	find . -name __pycache__ -prune -exec rm -rf {} +

$(venv)/.demo: $(requirements)
	$(call install,$(extras),$(packages))

$(venv)/.test: $(requirements)
	$(call install,$(test_extras),$(packages))

$(venv)/.lint: $(requirements)
	$(call install,$(test_extras)$(comma)lint,$(packages))

$(venv)/.train: $(requirements)
	$(call install,$(test_extras)$(comma)train,$(packages) $(TORCH))

# Only what python3-venv lacks is worth a hint of ours; Python says itself what else went wrong.
$(created):
ifeq ($(python_version),)
	@echo 'ee_seg_ros: $(PYTHON) does not run: install Python ($(supported)), or name one: make PYTHON=python3.12' >&2
	@exit 1
else ifeq ($(sourced)$(filter $(supported),$(python_version)),)
	@echo 'ee_seg_ros: $(PYTHON) is Python $(python_version); ROS 2 comes as wheels for $(supported) only.' >&2
	@echo 'Name another interpreter, as in: make demo PYTHON=python3.12' >&2
	@exit 1
else
	@echo 'ee_seg_ros: creating $(venv) with Python $(python_version)'
	@rm -rf $(venv)
	@$(PYTHON) -m venv $(venv_options) $(venv) || { rm -rf $(venv); \
		echo 'ee_seg_ros: no virtual environment. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
ifneq ($(sourced),)
	@$(PYTHON) -c 'import numpy; print("numpy" + ("<2" if numpy.__version__ < "2" else ">=2"))' \
		>$(venv)/constraints.txt 2>/dev/null || true
endif
	@touch $(venv)/constraints.txt $@
endif
