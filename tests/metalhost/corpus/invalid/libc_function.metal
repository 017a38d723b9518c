// printf is not declared.
// because: use of undeclared identifier 'printf'
// source: MSL 4.0 sections 1.5.4 and 6.19
printf("%f", x[0]);  // BUG
y[0] = x[0];
