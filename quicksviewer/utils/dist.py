"""stand-in"""
import os, random, time
import numpy as np, torch, torch.distributed as dist
def rank(): return int(os.environ.get("RANK","0"))
def world_size(): return int(os.environ.get("WORLD_SIZE","1"))
def is_main(): return rank()==0
def barrier():
    if dist.is_initialized(): dist.barrier()
def seed_everything(seed):
    random.seed(seed); np.random.seed(seed%2**32); torch.manual_seed(seed)
def close_process_group():
    if dist.is_initialized():
        dist.barrier(); dist.destroy_process_group(); time.sleep(.5)
