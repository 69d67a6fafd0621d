"""Supernets from timm backbones: conversion, subnets, calibration, extraction and the anytime model."""

from tips_nni.elastic._anytime import AnytimeModel as AnytimeModel
from tips_nni.elastic._anytime import FrontEntry as FrontEntry
from tips_nni.elastic._anytime import example_images as example_images
from tips_nni.elastic._backbone import create_backbone as create_backbone
from tips_nni.elastic._calibrate import calibrate as calibrate
from tips_nni.elastic._convert import convert as convert
from tips_nni.elastic._export import compare_onnx as compare_onnx
from tips_nni.elastic._export import export_onnx as export_onnx
from tips_nni.elastic._narrow import Statistics as Statistics
from tips_nni.elastic._narrow import resize as resize
from tips_nni.elastic._plan import ElasticPlan as ElasticPlan
from tips_nni.elastic._supernet import Supernet as Supernet
from tips_nni.elastic.rules import LayerRule as LayerRule
from tips_nni.elastic.rules import register_rule as register_rule
