//! Rows gathered by token, gradients added back by token.

use super::references::{Input, Ours, agree, random, values};
use candle_core::{DType, Device, Tensor};
use fttrain::error::Kind;
use fttrain::ops::{Grads, ParamId, Weight, embedding, host};

fn check(rows: usize, width: usize, ids: &[u32]) {
    let w = Input::random("w", &[rows, width]);
    let weight = Weight { value: w.tensor().into(), param: Some(ParamId(0)) };
    let y = embedding::forward(&weight, ids).unwrap();
    let dy = random("dy", ids.len() * width, 1.0);
    let mut grads = Grads::new(1);
    let dy_tensor = host::tensor(dy.clone(), y.shape()).unwrap();
    embedding::backward(&weight, ids, &dy_tensor, &mut grads).unwrap();
    agree(
        &format!("{} of {rows} rows of {width}", ids.len()),
        &[w],
        &Ours { y: values(&y), dy, grads: vec![grads.get(ParamId(0)).map(values)] },
        |t| t[0].index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0),
        |t| ids.iter().flat_map(|&id| t[0][id as usize * width..][..width].to_vec()).collect(),
    );
}

#[test]
fn an_embedding_agrees_with_both_references_when_tokens_repeat() {
    check(1, 1, &[0]);
    check(3, 5, &[2]);
    check(7, 6, &[6, 0, 6, 6, 1]);
    let many: Vec<u32> = (0..33).map(|i| i * 7 % 11).collect();
    check(13, 17, &many);
}

#[test]
fn a_second_backward_adds() {
    let weight = Weight { value: Input::random("w", &[4, 3]).tensor().into(), param: Some(ParamId(0)) };
    let dy = host::tensor(vec![1.0, 2.0, 3.0], (1, 3)).unwrap();
    let mut grads = Grads::new(1);
    for _ in 0..2 {
        embedding::backward(&weight, &[2], &dy, &mut grads).unwrap();
    }
    let sum = values(grads.get(ParamId(0)).unwrap());
    assert_eq!(sum, [[0.0; 3], [0.0; 3], [2.0, 4.0, 6.0], [0.0; 3]].concat());
}

#[test]
fn a_frozen_bf16_embedding_is_widened_and_gets_no_gradient() {
    let w = Input::random_bf16("w", &[5, 7]);
    let weight = Weight::frozen(w.tensor().to_dtype(DType::BF16).unwrap());
    let y = embedding::forward(&weight, &[4, 0]).unwrap();
    assert_eq!(values(&y), [&w.values[28..], &w.values[..7]].concat());
    let mut grads = Grads::new(1);
    embedding::backward(&weight, &[4, 0], &y, &mut grads).unwrap();
    assert!(grads.get(ParamId(0)).is_none());
}

#[test]
fn a_token_beyond_the_vocabulary_is_named() {
    let error =
        embedding::forward(&Weight::frozen(Input::random("w", &[5, 2]).tensor()), &[4, 5]).unwrap_err();
    assert_eq!(error.kind, Kind::Bug);
    assert!(error.to_string().contains("token 5 in an embedding of 5 rows"), "{error}");
}
