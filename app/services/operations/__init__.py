"""Operations: what is asked of Stripe, once, whatever crashes."""
