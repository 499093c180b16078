"""ocs_tf"""
