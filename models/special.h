/* special.h - the distribution functions that bandits and tests of experiments need.
 *
 * Double precision, no global state.  Formulas: NIST Digital Library of
 * Mathematical Functions (DLMF), sections 8.17 and 8.9. */
#ifndef MX_SPECIAL_H
#define MX_SPECIAL_H

/* ln B(a,b) = ln G(a) + ln G(b) - ln G(a+b); a, b > 0 */
double mx_ln_beta(double a, double b);
/* The share of Beta(a,b) below x: the regularized incomplete beta function I_x(a,b);
 * ln_beta is mx_ln_beta(a,b), given because callers ask for many x. */
double mx_beta_below(double x, double a, double b, double ln_beta);
/* Its density. */
double mx_beta_density(double x, double a, double b, double ln_beta);
/* The share of a standard normal below x, and its density. */
double mx_normal_below(double x);
double mx_normal_density(double x);
/* The share of chi-square with k degrees of freedom above x: Q(k/2, x/2). */
double mx_chi_square_above(double x, double k);

#endif
