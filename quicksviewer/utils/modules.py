"""stand-in"""
from dataclasses import dataclass
def train_only(model, prefixes):
    model.requires_grad_(False)
    for pre in prefixes:
        hits=[p for n,p in model.named_parameters() if n.startswith(pre+".")]
        assert hits, pre
        for p in hits: p.requires_grad_(True)
@dataclass
class Row: part:str; parameters:int; trainable:int; tensors:int
def parts_report(model, parts):
    rows=[]
    for part,pres in parts.items():
        ps=[p for n,p in model.named_parameters() if n.startswith(tuple(x+"." for x in pres))]
        rows.append(Row(part,sum(getattr(p,"ds_numel",p.numel()) for p in ps),sum(getattr(p,"ds_numel",p.numel()) for p in ps if p.requires_grad),len(ps)))
    return rows
