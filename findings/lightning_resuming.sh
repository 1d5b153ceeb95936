#!/usr/bin/env bash
# lightning 2.6.6 with jsonargparse 4.53.0 and torch 2.14.1
#
# Behaviour: with --ckpt_path, LightningCLI takes the model's arguments from the checkpoint and silently
# ignores other values on the command line. A resumed run loses the last update of a
# ReduceLROnPlateau. EarlyStopping takes its patience from the checkpoint. With max_steps below an
# epoch, EarlyStopping raises an error after training.
# One would have guessed: the command line takes precedence; a resumed run repeats the uninterrupted
# one; EarlyStopping uses the patience of its constructor; the run ends without an error.
# Output seen:
#   --model.size=3 with the checkpoint of a model of size 5: size 5
#   learning rates of epochs 3 to 5: whole run 0.01, 0.001, 0.0001; resumed 0.1, 0.01, 0.001
#   EarlyStopping(patience=10) after loading one of patience 3: 3
#   max_steps=2 with epochs of 4, with EarlyStopping: RuntimeError after step 2
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'lightning==2.6.6' 'jsonargparse[signatures]==4.53.0' numpy
cd "$folder"
run 2> "$folder/errors" <<'PYTHON' || { cat "$folder/errors"; exit 1; }
import contextlib
import io
import logging
import sys

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Model(pl.LightningModule):
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)
        self.rates: list[float] = []

    def training_step(self, batch, index):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("loss", torch.tensor(1.0))

    def on_train_epoch_end(self):
        self.rates.append(self.optimizers().param_groups[0]["lr"])

    def configure_optimizers(self):
        adam = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = ReduceLROnPlateau(adam, factor=0.1, patience=0)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": plateau, "monitor": "loss"}}


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)

    val_dataloader = train_dataloader


def fitted(resume_from=None, **options):
    model = Model(size=5)
    trainer = pl.Trainer(accelerator="cpu", **QUIET, **options)
    trainer.fit(model, Data(), ckpt_path=resume_from)
    return model


keep = ModelCheckpoint(dirpath="kept", filename="{epoch}", save_top_k=-1)
whole = fitted(max_epochs=6, callbacks=[keep]).rates[3:]
checkpoint = "kept/epoch=2.ckpt"
resumed = fitted(checkpoint, max_epochs=6, enable_checkpointing=False).rates

flags = [f"--trainer.{name}=false" for name in QUIET] + ["--trainer.accelerator=cpu"]
arguments = ["validate", *flags, "--model.size=3", f"--ckpt_path={checkpoint}"]
with contextlib.redirect_stdout(io.StringIO()):  # a table of the loss
    cli = LightningCLI(Model, Data, args=arguments, save_config_callback=None)
size = cli.model.hparams.size
print(f"--model.size=3 with the checkpoint of a model of size 5: size {size}")
whole, resumed = ([float(f"{rate:.3g}") for rate in rates] for rates in (whole, resumed))
shown = [", ".join(map(str, rates)) for rates in (whole, resumed)]
print(f"learning rates of epochs 3 to 5: whole run {shown[0]}; resumed {shown[1]}")

stopping = EarlyStopping("loss", patience=10)
stopping.load_state_dict(EarlyStopping("loss", patience=3).state_dict())
print(f"EarlyStopping(patience=10) after loading one of patience 3: {stopping.patience}")

trainer = pl.Trainer(
    accelerator="cpu",
    max_steps=2,
    callbacks=[EarlyStopping("loss")],
    enable_checkpointing=False,
    **QUIET,
)
try:
    trainer.fit(Model(), Data())
    end = "no error"
except RuntimeError as error:
    end = type(error).__name__
print(f"max_steps=2 with epochs of 4, with EarlyStopping: {end} after step {trainer.global_step}")
sys.exit(
    (size, stopping.patience, end, trainer.global_step) != (5, 3, "RuntimeError", 2)
    or (whole, resumed) != ([0.01, 0.001, 0.0001], [0.1, 0.01, 0.001])
)
PYTHON
