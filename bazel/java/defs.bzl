"""Stands for @rules_java, which the toolchains of Bazel itself name."""

java_import = native.java_import
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
